"""The fit of weights: `job` runs it from top to bottom, on draws, scores and an objective."""
