"""The training of single-objective policies, and the demo policies that it made."""
