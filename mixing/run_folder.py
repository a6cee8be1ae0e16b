"""The folder of one run of the server, and the record in it of shared memory that the run made.

vLLM's processes share memory in /dev/shm under random names. A process that is killed leaves it
there, a quarter of a gigabyte each time. So each process notes what it makes in the folder, and the
next start removes what dead runs have noted (prefmix.server.config.run_folder).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "PREFMIX_RUN_FOLDER"
"""Names the folder to all processes of a run."""

RECORD = "shared-memory"
"""The record's name. A folder without it is not ours."""

_LINE = re.compile(r"(psm_[0-9a-f]+) ([0-9]+) ([0-9]+)")


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of shared memory, and the process that made it."""

    name: str
    pid: int
    started: int
    """When the process started, in the kernel's ticks since the machine did."""

    @property
    def has_owner(self) -> bool:
        """True while the process that made it runs."""
        return start_of(self.pid) == self.started


def note(folder: Path, name: str) -> None:
    """Adds a segment that this process has made to the record."""
    line = f"{name.lstrip('/')} {os.getpid()} {start_of(os.getpid())}\n"
    with (folder / RECORD).open("a", encoding="ascii") as record:  # one write: lines stay whole
        record.write(line)


def segments(folder: Path) -> list[Segment]:
    """The segments that the folder's record names; lines of another form are left out.

    Raises: OSError if there is no record.
    """
    text = (folder / RECORD).read_text(encoding="ascii", errors="replace")
    found = (_LINE.fullmatch(line) for line in text.splitlines())
    return [Segment(each[1], int(each[2]), int(each[3])) for each in found if each]


def start_of(pid: int) -> int | None:
    """When a process started, in the kernel's ticks since the machine did; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else int(fields[18])
