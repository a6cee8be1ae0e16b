"""The memory, files, sockets and threads of a server's processes, and the growth of each."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import psutil

MIB = 2**20
_MAX_PAIRS_OF = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One process at one moment."""

    num_requests: int
    rss_mib: float
    num_files: int
    num_sockets: int
    num_threads: int


def sample(process: psutil.Process, *, num_requests: int) -> Sample:
    """The resources that a process holds now. Raises: psutil.Error."""
    with process.oneshot():
        return Sample(
            num_requests=num_requests,
            rss_mib=process.memory_info().rss / MIB,
            num_files=process.num_fds(),
            num_sockets=len(process.net_connections(kind="inet")),
            num_threads=process.num_threads(),
        )


class Sampler:
    """Samples every process of a server in a thread of its own while it is entered."""

    def __init__(
        self,
        processes: Sequence[psutil.Process],
        *,
        every_s: float,
        num_requests: Callable[[], int],
    ) -> None:
        """Args:
        processes: the server's.
        every_s: seconds between two samples.
        num_requests: how many requests have been sent so far.
        """
        self._processes = processes
        self._every_s = every_s
        self._num_requests = num_requests
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.samples: dict[str, list[Sample]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._is_over.is_set():
            for process in self._processes:
                found = sample(process, num_requests=self._num_requests())
                self.samples.setdefault(f"{process.name()} {process.pid}", []).append(found)
            self._is_over.wait(self._every_s)


def theil_sen(x: Sequence[float], y: Sequence[float]) -> float:
    """The median of the slopes between all pairs of points: few outliers do not move it.

    Long series are first averaged over at most 400 stretches of equal length.
    """
    size = -(-len(x) // _MAX_PAIRS_OF)
    xs = [statistics.fmean(x[at : at + size]) for at in range(0, len(x), size)]
    ys = [statistics.fmean(y[at : at + size]) for at in range(0, len(y), size)]
    slopes = [
        (b_y - a_y) / (b_x - a_x)
        for (a_x, a_y), (b_x, b_y) in combinations(zip(xs, ys, strict=True), 2)
        if b_x != a_x
    ]
    return statistics.median(slopes) if slopes else 0.0


def rss_slope(samples: Sequence[Sample]) -> float:
    """The slope of the resident memory, in MiB per 10,000 requests."""
    x = [each.num_requests / 10_000 for each in samples]
    return theil_sen(x, [each.rss_mib for each in samples])
