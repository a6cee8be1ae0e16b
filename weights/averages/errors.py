"""The error of policies whose parameters cannot be averaged or written."""


class ParameterAverageError(ValueError):
    """Policies whose parameters have no average, or a folder that it cannot be written to."""
