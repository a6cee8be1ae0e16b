"""The error of engines that draw and score responses in this process."""

from __future__ import annotations


class EngineError(ValueError):
    """An engine that could not answer: a policy computed NaN or infinity, or the engine keeps what
    an earlier call left in it."""
