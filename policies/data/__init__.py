"""The data of training: where rows come from, what is refused, and their tokens."""
