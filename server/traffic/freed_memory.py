"""Memory that large requests have freed, given back to the system.

glibc keeps freed memory for the next request of the thread that freed it. After a few bodies of
some megabytes, read by threads that read nothing else for hours, the process would hold hundreds of
megabytes that nobody uses.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

LARGE_BYTES = 2**18
"""Shortest body after which memory is given back; others cost little."""

DELAY_S = 1.0
"""Seconds between such a body's answer and that, which takes milliseconds in a thread."""


class FreedMemory:
    """The freed memory of this process."""

    def __init__(self) -> None:
        # glibc has it; elsewhere nothing is done.
        self._trim: Callable[[int], object] = getattr(ctypes.CDLL(None), "malloc_trim", int)
        self._timer: asyncio.TimerHandle | None = None

    def note(self, num_bytes: int) -> None:
        """Notes that a request has ended. Args: num_bytes: its body's length."""
        if num_bytes >= LARGE_BYTES and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY_S, self._give_back)

    def _give_back(self) -> None:
        self._timer = None
        asyncio.get_running_loop().run_in_executor(None, self._trim, 0)
