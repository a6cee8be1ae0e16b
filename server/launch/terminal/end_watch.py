"""Lines that say which processes the end of a server waits for, if it takes long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FIRST_S = 5.0
"""Seconds after the signal until the first line; most servers have ended by then."""

REPEAT_S = 10.0
"""Seconds between two lines."""

_LINE_S = 1.0
"""The longest wait for a line that is being written."""


class EndWatch:
    """Writes a line now and then, from the first call of `start` until this process has ended."""

    def __init__(self, write: Callable[[str], None]) -> None:
        """Args: write: writes a line."""
        self._write = write
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._lock = threading.RLock()  # a signal's handler may stop while its thread writes

    def start(self) -> None:
        """Begins to watch. May be called again, and in a signal's handler."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="end-watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Writes nothing more: an error, which follows, is the last line.

        A line that is being written is waited for, but not for ever: the log may be blocked.
        """
        self._over.set()
        if self._lock.acquire(timeout=_LINE_S):
            self._lock.release()

    def _run(self) -> None:
        began = time.monotonic()
        wait_s = FIRST_S
        while not self._over.wait(wait_s):
            wait_s = REPEAT_S
            names = running_children()
            what = ", ".join(names) if names else "this process, which tidies up"
            with self._lock:
                if not self._over.is_set():
                    seconds = time.monotonic() - began
                    self._write(f"ending for {seconds:.0f} s, still running: {what}")


def running_children() -> list[str]:
    """Name and process id of each child of this process, and theirs, that has not ended."""
    import psutil  # type: ignore[import-untyped,unused-ignore]  # comes with vLLM

    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.name()} (process {process.pid})")
        except psutil.NoSuchProcess:
            continue
    return found
