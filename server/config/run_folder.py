"""Makes the temporary folder of one run of the server, and removes those that dead runs have left.

A run that is killed leaves its folder, with the sockets of vLLM's processes, and its shared memory.
The next start removes both, if the folder is this user's, has a record, and nobody holds its lock
or made any of its memory and still runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prefmix.mixing.run_folder import RECORD, segments
from prefmix.server.config.errors import CommandError

PREFIX = "prefmix-"
END_S = 2.0
"""Time that processes which were killed have to be gone."""

SHARED_MEMORY = Path("/dev/shm")
_GROUP = re.compile(r"vllm_dist_[0-9a-f]{32}")
"""A file by which the ranks of a group find each other; their shared memory has its name too."""


@contextmanager
def run_folder() -> Iterator[Path]:
    """A new folder, which exists as long as the block runs. Raises: CommandError."""
    remove_leftovers()
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    except OSError as error:
        raise CommandError(
            f"cannot make a temporary folder: {error}; make room there, or name another place with "
            "TMPDIR"
        ) from None
    # The lock is there before the record: a folder with a record and no lock is a dead run's.
    with _lock(folder, fcntl.LOCK_SH):
        (folder / RECORD).touch(mode=0o600)
        try:
            yield folder
        finally:
            remove(folder)


def remove_leftovers() -> None:
    """Removes what runs of this user that were killed have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if _is_ours(folder):
                _remove_if_dead(folder)


def remove(folder: Path, *, wait_s: float = END_S) -> None:
    """Removes a run's folder and the shared memory in its record.

    If a process that made some still runs after a while, all is left to the next start.
    """
    with contextlib.suppress(OSError):
        recorded = segments(folder)
        deadline = time.monotonic() + wait_s
        while any(segment.has_owner for segment in recorded):
            if time.monotonic() >= deadline:
                return
            time.sleep(0.01)
        for segment in recorded:
            _unlink(SHARED_MEMORY / segment.name)
        for file in folder.iterdir():
            if _GROUP.fullmatch(file.name):
                for shared in SHARED_MEMORY.glob(f"{file.name}-*"):
                    _unlink(shared)
    shutil.rmtree(folder, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    return _is_this_users(folder, stat.S_ISDIR) and _is_this_users(folder / RECORD, stat.S_ISREG)


def _remove_if_dead(folder: Path) -> None:
    with _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        remove(folder, wait_s=0)


@contextmanager
def _lock(folder: Path, kind: int) -> Iterator[None]:
    """Locks a folder, which cleaners of temporary files then leave alone. Raises: OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        if _is_this_users(path, stat.S_ISREG):
            path.unlink()


def _is_this_users(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """True if it is this user's own and of a kind, a link not being followed."""
    about = path.lstat()
    return about.st_uid == os.geteuid() and is_kind(about.st_mode)
