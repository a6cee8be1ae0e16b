"""State of a batch: weights of each request, statistics, rows that no token can be drawn from."""
