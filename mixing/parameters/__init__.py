"""The parameters of a model while they are loaded: which are missing, moved, or stored twice."""
