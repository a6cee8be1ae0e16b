"""State of a batch: the weights of each request, the step under way, statistics, broken rows."""
