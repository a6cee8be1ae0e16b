"""SIGTERM and SIGHUP for commands that run to their end, as Ctrl-C is.

What a command has begun is then removed by the same code: half a checkpoint, a temporary folder.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """The process was asked to end; user code that catches Exception lets it pass."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Raises Terminated in the block at the first signal; a second one ends the process at once.

    A signal that is ignored, as by nohup, or handled already stays so. Only the main thread can
    change handlers; in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Terminated(number)
