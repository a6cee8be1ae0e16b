"""Reports of fits and evaluations: text, plots and HTML."""
