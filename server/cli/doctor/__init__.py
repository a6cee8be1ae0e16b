"""`prefmix doctor`: the checks of a start, and of the machine, without a start."""
