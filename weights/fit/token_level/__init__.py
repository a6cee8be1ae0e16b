"""The fit of the mixture that is served, which normalises every token: rounds, steps, KLs."""
