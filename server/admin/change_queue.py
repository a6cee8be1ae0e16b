"""The queue of changes: one is made at a time, few wait for it, and none waits for long.

A store's lock may be held by another program for minutes. The changes that come meanwhile must not
pile up in memory, nor be answered long after their senders have given up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prefmix.weights.store.errors import StoreBusyError

MAX_WAITING = 16
"""Changes that may wait in one API process; further ones are refused at once."""

WAIT_S = 10.0
"""Seconds that a change may wait in all: for its turn, the other processes and the store."""

RETRY_AFTER_S = 5
"""Retry-After of a change that was refused because of another."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn of one change."""

    deadline: float
    """The time on the monotonic clock until which it may wait for locks."""

    @property
    def left_s(self) -> float:
        """Seconds that it may still wait; 0 if none."""
        return max(0.0, self.deadline - time.monotonic())


class ChangeQueue:
    """The changes of one API process, first come, first served."""

    def __init__(self, *, max_waiting: int, wait_s: float) -> None:
        """Args:
        max_waiting: changes that may wait.
        wait_s: seconds that a change may wait in all.
        """
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._lock = asyncio.Lock()
        self._num_waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Waits for the turn, and holds it. Raises: StoreBusyError."""
        if self._num_waiting >= self._max_waiting:
            raise StoreBusyError(
                f"{self._num_waiting} changes wait already for one that is under way; try again"
            )
        turn = Turn(time.monotonic() + self._wait_s)
        self._num_waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._lock.acquire()
        except TimeoutError:
            raise StoreBusyError(
                f"the changes before this one have taken {self._wait_s:g} s; try again, or end "
                "the process that holds the store's lock"
            ) from None
        finally:
            self._num_waiting -= 1
        try:
            yield turn
        finally:
            self._lock.release()
