"""The fit of the product of whole sequences: objective, mirror descent and certificate."""
