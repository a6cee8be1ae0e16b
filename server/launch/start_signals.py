"""Ctrl-C and SIGTERM while the engine starts: everything ends at once, whatever it is doing.

vLLM turns both into exceptions raised wherever the main thread happens to be; while its processes
are coming up that can be a place that swallows them, and the start goes on. So until the server is
ready a signal ends the whole family of processes; from then on vLLM's own handlers decide, and a
second signal ends what they have not.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

_Handler = Callable[[int, FrameType | None], Any] | int | None

INSISTENCE_S = 1.0
"""A signal that comes this long after the first ends everything at once."""

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class StartSignals:
    """Keeps our handlers in place; vLLM's are remembered and used once `ready` is called.

    Ours stay in place to the end, in front of vLLM's, so that an end that was asked for can be told
    from one that was not. (An event loop's handler is told by file descriptor and needs no more.)
    `on_signal` is called when a signal comes, `before_exit` before an end at once. Enter it in the
    main thread, before uvloop is imported: uvloop keeps its own reference to `signal.signal`.
    """

    def __init__(self, *, on_signal: Callable[[], None], before_exit: Callable[[], None]) -> None:
        self._on_signal = on_signal
        self._before_exit = before_exit
        self._ready = threading.Event()
        self._install = signal.signal
        self._previous: dict[int, _Handler] = {}
        self._later: dict[int, _Handler] = {}
        self._asked_at: float | None = None

    def __enter__(self) -> Self:
        """Installs our handlers."""
        self._previous = {number: self._install(number, self._handle) for number in _NUMBERS}
        signal.signal = self._remember  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        """Puts everything back."""
        signal.signal = self._install
        for number, handler in self._previous.items():
            self._install(number, handler)

    @property
    def asked_to_end(self) -> bool:
        """Whether one of the signals has come."""
        return self._asked_at is not None

    @property
    def is_ready(self) -> bool:
        """Whether `ready` has been called."""
        return self._ready.is_set()

    def ready(self) -> None:
        """Hands both signals over to vLLM's handlers. Any thread may call this."""
        self._ready.set()

    def _remember(self, number: int, handler: _Handler) -> _Handler:
        if number not in _NUMBERS:
            return self._install(number, handler)
        previous = self._later.get(number, self._previous[number])
        self._later[number] = handler
        return previous

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        first = self._asked_at is None
        self._asked_at = now if self._asked_at is None else self._asked_at
        # Wrappers may pass one Ctrl-C on a second time; a person takes longer to insist.
        insists = not first and now - self._asked_at > INSISTENCE_S
        self._on_signal()
        later = self._later.get(number)
        if self._ready.is_set() and callable(later) and not insists:
            later(number, frame)
            return
        end_descendants()
        self._before_exit()
        os._exit(128 + number)


def end_descendants() -> None:
    """Kills every process that this one has started, and those that they have started."""
    import psutil  # type: ignore[import-untyped,unused-ignore]  # comes with vLLM

    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
