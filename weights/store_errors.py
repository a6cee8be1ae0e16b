"""Everything that can go wrong with a store of profiles.

  StoreError                 a store that cannot be read or changed
  ├── StoreFormatError       what the file holds is not a store, or not one for these policies
  ├── StoreMissingError      there is no file
  ├── StoreFileError         the operating system refused: rights, room, a folder in its place
  ├── StoreBusyError         another process has kept the lock for too long
  ├── StaleVersionError      the store is no longer what the caller expected
  └── UnknownEntryError      a profile or version that does not exist

Every message is one sentence. After any of them the store is what it was before.
"""

from __future__ import annotations


class StoreError(ValueError):
    """A store that cannot be read or changed."""


class StoreFormatError(StoreError):
    """The file's content is wrong; the message names file, field and value."""


class StoreMissingError(StoreError):
    """The file does not exist."""


class StoreFileError(StoreError):
    """The operating system refused to read or write."""


class StoreBusyError(StoreError):
    """The lock could not be had in time."""


class StaleVersionError(StoreError):
    """The store has changed since the caller looked."""


class UnknownEntryError(StoreError):
    """A profile or an earlier version that does not exist."""
