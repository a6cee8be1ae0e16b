"""The errors of a command line and of a configuration."""

from __future__ import annotations


class CommandError(Exception):
    """Ends a command with one sentence on stderr and an exit code."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ConfigError(ValueError):
    """A configuration that cannot be served. One sentence."""
