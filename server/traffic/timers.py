"""Named timers of one object in the event loop."""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable


class Timers:
    """Timers by name; each runs once at a time."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._running: dict[str, TimerHandle] = {}

    def start(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        """Calls `action` after some seconds, unless the timer runs already."""
        if name not in self._running:
            self._running[name] = self._loop.call_later(seconds, action)

    def stop(self, *names: str) -> None:
        """Stops those of the timers that run."""
        for name in names:
            if (timer := self._running.pop(name, None)) is not None:
                timer.cancel()
