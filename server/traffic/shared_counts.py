"""Numbers that the API processes of one server share without locks.

Each process writes its own numbers and reads everyone's: eight aligned bytes are written at once,
and a sum that is a moment old does no harm where it is used.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_WORD = 8
_SLOT = 8
"""Words of a process or engine: a cache line, so that writers do not slow each other down."""

_STARTED, _IN_ENGINE, _PENDING, _FINISHED = range(4)
_RUNNING, _WAITING = range(2)


class SharedCounts:
    """The table; a file in a folder of the server's own, or this process's memory without one."""

    def __init__(
        self, folder: Path | None, *, process: int = 0, num_processes: int = 1, num_engines: int = 1
    ) -> None:
        """Joins the others.

        Args:
          folder: private to this server; None if this process is alone.
          process: number of this process, from 0.
          num_processes: how many API processes there are.
          num_engines: how many engines report, each with a number from 0.
        """
        self.num_processes = num_processes
        self._engines = num_engines
        self._own = process * _SLOT
        size = (num_processes + num_engines) * _SLOT * _WORD
        if folder is None:
            self._words = memoryview(mmap.mmap(-1, size)).cast("q")
            return
        handle = os.open(folder / "counts", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(handle, size)  # new bytes are 0; a second call changes nothing
            self._words = memoryview(mmap.mmap(handle, size)).cast("q")
        finally:
            os.close(handle)

    def start(self) -> None:
        """This process answers requests from now on."""
        self._words[self._own + _STARTED] = 1

    @property
    def num_started(self) -> int:
        """How many processes answer requests."""
        return self._sum(_STARTED)

    def set_num_requests(self, count: int) -> None:
        """This process has so many requests in the engine."""
        self._words[self._own + _IN_ENGINE] = count

    def add_pending(self, count: int) -> None:
        """So many more requests are on their way to the engine; negative for fewer."""
        self._words[self._own + _PENDING] += count

    def add_finished(self, count: int) -> None:
        """The engine has ended so many more."""
        self._words[self._own + _FINISHED] += count

    @property
    def in_flight(self) -> int:
        """Requests in the engine or on their way there, of all processes."""
        return self._sum(_IN_ENGINE) + self._sum(_PENDING)

    @property
    def num_finished(self) -> int:
        """Requests the engine has ended since the start, of all processes."""
        return self._sum(_FINISHED)

    def report(self, engine: int, *, running: int, waiting: int) -> None:
        """What an engine said after a step. Of `running` the highest of late is kept, which falls
        by one a step: between two steps those that have just ended leave room for others."""
        at = self._engine(engine)
        self._words[at + _RUNNING] = max(running, self._words[at + _RUNNING] - 1)
        self._words[at + _WAITING] = waiting

    def room(self, max_running: int) -> int:
        """How many requests the engines can run at once, as far as is known.

        Args:
          max_running: what each engine's settings allow. An engine in which requests wait runs
            what it can: its KV cache, or the work on their prompts, allows no more.
        """
        slots = (self._engine(number) for number in range(self._engines))
        return sum(
            min(self._words[at + _RUNNING], max_running)
            if self._words[at + _WAITING]
            else max_running
            for at in slots
        )

    def _sum(self, word: int) -> int:
        return sum(self._words[word : self.num_processes * _SLOT : _SLOT])

    def _engine(self, number: int) -> int:
        return (self.num_processes + number % self._engines) * _SLOT
