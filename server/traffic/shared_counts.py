"""Counts of requests that the API processes of one server share in memory, without locks.

Each process writes its own numbers and reads everyone's. A write of eight aligned bytes is atomic,
and readers tolerate a sum that is a moment old.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_WORD = 8
_SLOT = 8
"""Words per process or engine: a cache line, so that writers do not slow each other down."""

_STARTED, _IN_ENGINE, _PENDING, _FINISHED, _RESERVED, _MOVES = range(6)
_RUNNING, _WAITING = range(2)


class SharedCounts:
    """The table of counts: a memory-mapped file, or memory of this process if it is alone."""

    def __init__(
        self, folder: Path | None, *, process: int = 0, num_processes: int = 1, num_engines: int = 1
    ) -> None:
        """Opens the table.

        Args:
          folder: private folder of this server; None if this process is alone.
          process: number of this process, from 0.
          num_processes: number of API processes.
          num_engines: number of engines that report, each with a number from 0.
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
        """Notes that this process answers requests from now on."""
        self._words[self._own + _STARTED] = 1

    @property
    def num_started(self) -> int:
        """Number of processes that answer requests."""
        return self._sum(_STARTED)

    def set_num_requests(self, count: int) -> None:
        """Sets the number of requests that this process has in the engine."""
        self._words[self._own + _IN_ENGINE] = count

    def add_reserved(self, count: int) -> None:
        """Adds to the answers of this process's requests that have not ended, as HTTP has them."""
        self._words[self._own + _RESERVED] += count
        self._words[self._own + _MOVES] += 1

    def add_pending(self, count: int) -> None:
        """Adds to this process's requests that are admitted and not yet in the engine."""
        self._words[self._own + _PENDING] += count

    def add_finished(self, count: int) -> None:
        """Adds to the requests that the engine has finished."""
        self._words[self._own + _FINISHED] += count

    @property
    def in_flight(self) -> int:
        """Number of answers in the engine or on their way there, over all processes.

        vLLM's count falls with each answer of a request that ends, but a request that fails on its
        way to the engine may stay in it for ever. So no process has more in flight than its HTTP
        requests have reserved.
        """
        processes = range(0, self.num_processes * _SLOT, _SLOT)
        return sum(
            min(
                self._words[at + _RESERVED],
                self._words[at + _IN_ENGINE] + self._words[at + _PENDING],
            )
            for at in processes
        )

    @property
    def num_moves(self) -> int:
        """Number of requests that have been admitted or have ended, over all processes."""
        return self._sum(_MOVES)

    @property
    def num_finished(self) -> int:
        """Number of requests finished since the start, over all processes."""
        return self._sum(_FINISHED)

    def report(self, engine: int, *, running: int, waiting: int) -> None:
        """Notes an engine's report after a step.

        `running` is kept as a recent maximum that falls by one a step: between two steps, requests
        that have just ended leave room for others.
        """
        at = self._engine(engine)
        self._words[at + _RUNNING] = max(running, self._words[at + _RUNNING] - 1)
        self._words[at + _WAITING] = waiting

    def room(self, max_running: int) -> int:
        """Estimated number of requests that the engines can run at once.

        Args:
          max_running: the limit of each engine's settings. An engine in which requests wait is
            taken to be full with those it runs: its KV cache or its prefill work allows no more.
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
