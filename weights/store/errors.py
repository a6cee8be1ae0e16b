"""The errors of a store of profiles.

  StoreError                 a store that cannot be read or changed
  ├── StoreFormatError       the content is not a store, or not one for these policies
  ├── StoreMissingError      there is no file
  ├── StoreFileError         the operating system refused: a folder in its place, a broken disk
  │   ├── StoreFullError     there is no room to write
  │   └── StoreReadOnlyError there is no right to write
  ├── StoreBusyError         another process has kept the lock for too long
  ├── StaleVersionError      the store is not at the version that the caller expected
  ├── PolicyInUseError       a profile gives a policy weight that is to go
  └── UnknownEntryError      a profile, policy or version that does not exist

Every message is one sentence. After any of them the store is what it was before.
"""

from __future__ import annotations

import errno


class StoreError(ValueError):
    """A store that cannot be read or changed."""


class StoreFormatError(StoreError):
    """The file's content is wrong; the message names file, field and value."""


class StoreMissingError(StoreError):
    """The file does not exist."""


class StoreFileError(StoreError):
    """The operating system refused to read or write."""


class StoreFullError(StoreFileError):
    """There is no room to write."""


class StoreReadOnlyError(StoreFileError):
    """There is no right to write."""


class StoreBusyError(StoreError):
    """The lock could not be had in time."""


class StaleVersionError(StoreError):
    """The store has changed since the caller looked."""


class PolicyInUseError(StoreError):
    """A policy that is to go has weight in a profile."""


class UnknownEntryError(StoreError):
    """A profile, an added policy or an earlier version that does not exist."""


def file_error(what: str, error: OSError, *, kept: str = "") -> StoreFileError:
    """The error for something that the operating system refused, with a remedy.

    Args:
      what: the step that failed, with the file's name.
      error: the operating system's error.
      kept: the content that is still there.
    """
    kind, remedy = _REMEDIES.get(error.errno or 0, (StoreFileError, ""))
    return kind("; ".join(part for part in (f"{what}: {error.strerror}", kept, remedy) if part))


_NO_ROOM = (StoreFullError, "make room there and repeat the change")
_NO_RIGHT = (
    StoreReadOnlyError,
    "give the server the right to write there, or change the file where it comes from",
)
_NO_FILE = (StoreFileError, "put a regular file in its place")
_REMEDIES: dict[int, tuple[type[StoreFileError], str]] = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: _NO_ROOM,
    errno.EROFS: _NO_RIGHT,
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EISDIR: _NO_FILE,
    errno.ELOOP: _NO_FILE,
    errno.ENOTDIR: _NO_FILE,
    errno.ENXIO: _NO_FILE,
    errno.EIO: (StoreFileError, "the disk fails: see the kernel's log"),
}
