"""Durable replacement of files, and a lock between processes.

A reader sees the old content or the new, never a part, and needs no lock; a power cut changes
nothing about that. POSIX only, as vLLM is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

_NEW_FILE_MODE = 0o644
_RETRY_S = 0.002


class UnconfirmedError(OSError):
    """The file was replaced, but the disk did not confirm that it stays so."""


def replace_file(path: Path, content: bytes) -> None:
    """Creates or replaces a file; returns once the new content is on the disk.

    The content is written to a second file in the same folder, synced and renamed, and the folder
    is synced. Hold a lock: two writers would share the second file.
    Raises: OSError if the old file is still there; UnconfirmedError if the new one is.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        _write(aside, content, mode=_mode(path))
        os.rename(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise UnconfirmedError(error.errno, error.strerror) from None


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_regular_file(path: Path, *, most: int = -1) -> bytes:
    """The content of a file. Pipes and devices, which could block for ever, raise OSError.

    Args: most: bytes to read; -1 reads all.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is not a regular file")
        return file.read(most)


@contextlib.contextmanager
def file_lock(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Holds an exclusive lock between processes and threads; the lock ends with its holder.

    Args:
      path: the lock's own file, made if missing and left in place.
      timeout_s: how long to wait.
    Raises: OSError if the file cannot be made; TimeoutError if another kept the lock.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _NEW_FILE_MODE)
    try:
        _lock(handle, deadline=time.monotonic() + timeout_s)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, *, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError from None
            time.sleep(_RETRY_S)
        else:
            return


def _write(path: Path, content: bytes, *, mode: int | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    handle = os.open(path, flags, _NEW_FILE_MODE)
    with os.fdopen(handle, "wb", buffering=0) as file:
        if mode is not None:
            os.fchmod(handle, mode)
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]
        os.fsync(handle)


def _mode(path: Path) -> int | None:
    """The permissions of the file to replace; None if there is none."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        return None
