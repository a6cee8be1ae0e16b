"""Durable replacement of files, and a lock between processes.

A reader sees the old content or the new, never a part, and needs no lock; a power cut changes
nothing about that. No link, pipe or device that someone has put in the place of a file is written
through or waited for. POSIX only, as vLLM is.
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
_NEW_PRIVATE_FILE_MODE = 0o600
_RETRY_S = 0.002
_RIGHTS = 0o666
"""Rights that a file's successor takes over: neither set-uid bits nor the right to be run."""


class UnconfirmedError(OSError):
    """The file was replaced, but the disk did not confirm that it stays so."""


def replace_file(
    path: Path, content: bytes, *, like: Path | None = None, is_private: bool = False
) -> None:
    """Creates or replaces a file; returns once the new content is on the disk.

    The content is written to a second file in the same folder, synced and renamed, and the folder
    is synced. Hold a lock: two writers would share the second file.

    Args:
      path: the file.
      content: its new content.
      like: the file whose rights and owner it gets; None takes those of the file that it replaces.
      is_private: true leaves rights to its owner and group alone, and a file without a model to its
        owner.
    Raises: OSError if the old file is still there; UnconfirmedError if the new one is.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        model = _status(path if like is None else like)
        _write(aside, content, model=model, is_private=is_private)
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


def make_folder(folder: Path, *, like: Path) -> bool:
    """Makes a folder unless it exists; its name is not synced. A link to a folder raises OSError.

    Args: like: the file whose owner it gets, and whose readers and writers may use it.
    Returns: True if it was made.
    """
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is not a folder") from None
        return False
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        model = _status(like)
        _give_to(handle, model, folder=folder.parent)
        if model is not None:
            rights = stat.S_IMODE(model.st_mode) & _RIGHTS
            os.fchmod(handle, 0o700 | rights | (rights & 0o444) >> 2)  # to read is to enter
    finally:
        os.close(handle)
    return True


def read_regular_file(path: Path, *, most: int) -> bytes:
    """The beginning of a file. Pipes and devices, which could block for ever, raise OSError.

    Args: most: bytes to read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        _check_regular(handle)
        return file.read(most)


@contextlib.contextmanager
def file_lock(path: Path, *, timeout_s: float, like: Path | None = None) -> Iterator[None]:
    """Holds an exclusive lock between processes and threads; the lock ends with its holder.

    Args:
      path: the lock's own file, made if missing and left in place.
      timeout_s: how long to wait.
      like: the file whose owner a new lock gets; who may write that owner's folder may hold it.
    Raises: OSError if the file cannot be made; TimeoutError if another kept the lock.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        handle = _open_lock(path, like)
        try:
            _lock(handle, deadline=deadline)
            if _is_at(handle, path):  # else another has removed the file: it locks nobody out
                yield
                return
        finally:
            os.close(handle)


def _open_lock(path: Path, like: Path | None) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, os.O_RDWR | flags)
    except PermissionError:
        handle = os.open(path, os.O_RDONLY | flags)  # another user's lock can be held all the same
    except FileNotFoundError:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o600)
        except FileExistsError:  # another process was faster
            return _open_lock(path, like)
        _share_lock(handle, path.parent, like)
    try:
        _check_regular(handle)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _share_lock(handle: int, folder: Path, like: Path | None) -> None:
    """Lets those hold a new lock who may write its folder, and nobody else."""
    with contextlib.suppress(OSError):
        _give_to(handle, None if like is None else _status(like), folder=folder)
        writers = os.stat(folder).st_mode & 0o022
        os.fchmod(handle, 0o600 | writers | writers << 1)


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


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _write(path: Path, content: bytes, *, model: os.stat_result | None, is_private: bool) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # left by a writer that was killed, or put there by someone else
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags, _NEW_PRIVATE_FILE_MODE if is_private else _NEW_FILE_MODE)
    with os.fdopen(handle, "wb", buffering=0) as file:
        _give_to(handle, model, folder=path.parent)
        if model is not None:
            rights = _RIGHTS & ~0o007 if is_private else _RIGHTS
            os.fchmod(handle, stat.S_IMODE(model.st_mode) & rights)
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]
        os.fsync(handle)


def _give_to(handle: int, model: os.stat_result | None, *, folder: Path) -> None:
    """Gives a file the owner of another, as far as this process may.

    What root writes belongs to the folder's owner where there is no other, or only root's own:
    else a server that does not run as root could not change it any more.
    """
    own = os.fstat(handle)
    if own.st_uid == 0 and (model is None or model.st_uid == 0):
        model = os.stat(folder)
    if model is None or (own.st_uid, own.st_gid) == (model.st_uid, model.st_gid):
        return
    for user, group in ((model.st_uid, model.st_gid), (-1, model.st_gid)):
        with contextlib.suppress(OSError):
            os.fchown(handle, user, group)
            return


def _status(path: Path) -> os.stat_result | None:
    """The status of a file; None if there is none."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _check_regular(handle: int) -> None:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is not a regular file")
