"""Handlers of Ctrl-C and SIGTERM that end the start of the engine at once.

vLLM turns both signals into exceptions in the main thread. While vLLM's processes come up, the code
that runs there may swallow the exception, and the start goes on. So until the server is ready, a
signal kills this process and all its children. From then on vLLM's own handlers decide, and a
second signal kills what they have not ended.
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
"""A signal that comes this long after the first one kills everything at once."""

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class StartSignals:
    """Installs our handlers, and calls vLLM's from them once `ready` has been called.

    Our handlers stay in place to the end, so that `asked_to_end` tells an end by a signal from
    any other. (An event loop hears of a signal by a file descriptor, whichever handler is set.)
    Enter it in the main thread, before uvloop is imported: uvloop keeps its own reference to
    `signal.signal`.
    """

    def __init__(self, *, on_signal: Callable[[], None], before_exit: Callable[[], None]) -> None:
        """Args:
        on_signal: called when a signal comes.
        before_exit: called before everything is killed.
        """
        self._on_signal = on_signal
        self._before_exit = before_exit
        self._ready = threading.Event()
        self._install = signal.signal
        self._previous: dict[int, _Handler] = {}
        self._later: dict[int, _Handler] = {}
        self._asked_at: float | None = None

    def __enter__(self) -> Self:
        """Installs our handlers."""
        # A handler cannot use a module whose import it interrupts, and vLLM imports this one.
        import psutil  # type: ignore[import-untyped,unused-ignore]  # noqa: F401

        self._previous = {number: self._install(number, self._handle) for number in _NUMBERS}
        signal.signal = self._remember  # type: ignore[assignment]
        # With VLLM_WORKER_MULTIPROC_METHOD=fork the engine inherits all of this, and would remove
        # the server's files at a signal instead of handling it.
        os.register_at_fork(after_in_child=self._leave_child)
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the previous handlers back."""
        signal.signal = self._install
        for number, handler in self._previous.items():
            self._install(number, handler)

    def _leave_child(self) -> None:
        if signal.signal == self._remember:
            self.__exit__()

    @property
    def asked_to_end(self) -> bool:
        """True once one of the signals has come."""
        return self._asked_at is not None

    @property
    def seconds_since_asked(self) -> float:
        """Seconds since the first of the signals; 0 before it."""
        return 0.0 if self._asked_at is None else time.monotonic() - self._asked_at

    @property
    def is_ready(self) -> bool:
        """True once `ready` has been called."""
        return self._ready.is_set()

    def ready(self) -> None:
        """Hands both signals to vLLM's handlers from now on. Any thread may call this."""
        self._ready.set()

    def _remember(self, number: int, handler: _Handler) -> _Handler:
        if number not in _NUMBERS:
            return self._install(number, handler)
        previous = self._later.get(number, self._previous[number])
        self._later[number] = handler
        return previous

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            # Not for a second signal: it may interrupt this call, which holds locks.
            self._on_signal()
        # A wrapper may pass one Ctrl-C on twice; a person takes longer to press it again.
        insists = now - self._asked_at > INSISTENCE_S
        later = self._later.get(number)
        if self._ready.is_set() and callable(later) and not insists:
            later(number, frame)
            return
        end_descendants()
        self._before_exit()
        os._exit(128 + number)


def end_descendants() -> None:
    """Kills all children of this process, and theirs."""
    import psutil  # type: ignore[import-untyped,unused-ignore]  # comes with vLLM

    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
