"""The files of a store: the current one, its earlier versions, its lock, and what goes wrong there.

    weights.json              the profiles in force (prefmix.weights.store.format)
    weights.json.history/     2.json, 3.json ...: the versions that were in force before
    weights.json.lock         held by the process that writes; empty
    weights.json.broken.7     the unreadable content that version 7 replaced in a rollback

Readers take no lock and never see half a file. A symbolic link is followed: the file that it points
to is replaced, and has the history.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefmix.weights.store.durable_file import (
    UnconfirmedError,
    file_lock,
    read_regular_file,
    replace_file,
    sync_folder,
)
from prefmix.weights.store.errors import (
    StoreBusyError,
    StoreFileError,
    StoreMissingError,
    file_error,
)
from prefmix.weights.store.format import MAX_BYTES, dump
from prefmix.weights.store.profiles import ProfileSet


class StoreFiles:
    """One store's files. Holds no state: every call looks at the disk."""

    def __init__(self, path: Path, *, history_limit: int, lock_timeout_s: float) -> None:
        """Args:
        path: the store file, or a link to it.
        history_limit: earlier versions to keep, >= 1.
        lock_timeout_s: how long a writer waits for another, in seconds.
        """
        assert history_limit >= 1
        self._path = path
        self._history_limit = history_limit
        self._lock_timeout_s = lock_timeout_s

    @property
    def current(self) -> Path:
        """The store file, links resolved."""
        return Path(os.path.realpath(self._path))

    def version_file(self, version: int) -> Path:
        """The file of an earlier version."""
        return self._history / f"{version}.json"

    def broken_file(self, version: int) -> Path:
        """The file that keeps the unreadable content which `version` replaced."""
        current = self.current
        return current.with_name(f"{current.name}.broken.{version}")

    def read(self, path: Path) -> bytes:
        """The content of one of the files. Raises: StoreMissingError, StoreFileError."""
        try:
            return read_regular_file(path, most=MAX_BYTES + 1)
        except FileNotFoundError:
            raise StoreMissingError(f"the weights store {path} does not exist") from None
        except OSError as error:
            raise file_error(f"cannot read the weights store {path}", error) from None

    def claimed_version(self) -> int:
        """The version that an unreadable store file claims to be; 0 if it claims none."""
        found = re.search(rb'"version"\s*:\s*([1-9][0-9]{0,8})\b', self.read(self.current))
        return 0 if found is None else int(found[1])

    def versions(self) -> list[int]:
        """Numbers of the earlier versions kept, oldest first. Raises: StoreFileError."""
        folder = self._history
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise file_error(f"cannot list {folder}", error) from None
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock between writers. Raises: StoreBusyError, StoreFileError."""
        current = self.current
        lock = current.with_name(current.name + ".lock")
        holder = file_lock(lock, timeout_s=self._lock_timeout_s)
        try:
            holder.__enter__()
        except TimeoutError:
            raise StoreBusyError(
                f"another process has held {lock} for {self._lock_timeout_s:g} s; try again, or "
                "end that process"
            ) from None
        except OSError as error:
            what = f"cannot change the weights store {current}: {lock.name}"
            raise file_error(what, error) from None
        try:
            yield
        finally:
            holder.__exit__(None, None, None)

    def write(self, profiles: ProfileSet, *, kept: str) -> None:
        """Replaces the store file. Raises: StoreFileError, which says what is `kept`."""
        self._write(self.current, profiles, kept=kept)

    def keep_version(self, profiles: ProfileSet, *, kept: str) -> None:
        """Writes an earlier version into the history. Raises: as `write`."""
        folder = self._history
        try:
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                sync_folder(folder.parent)
        except OSError as error:
            raise file_error(f"cannot make {folder}", error, kept=kept) from None
        self._write(self.version_file(profiles.version), profiles, kept=kept)

    def keep_broken(self, copy: Path) -> None:
        """Copies an unreadable store file before it is replaced. Raises: StoreFileError."""
        try:
            replace_file(copy, read_regular_file(self.current))
        except OSError as error:
            what = f"cannot keep the broken file as {copy}"
            raise file_error(what, error, kept="nothing was changed") from None

    def prune(self) -> None:
        """Removes the oldest versions above the limit."""
        with contextlib.suppress(OSError):  # the change is made: a version too many harms nobody
            for version in self.versions()[: -self._history_limit]:
                self.version_file(version).unlink(missing_ok=True)

    @property
    def _history(self) -> Path:
        current = self.current
        return current.with_name(current.name + ".history")

    def _write(self, path: Path, profiles: ProfileSet, *, kept: str) -> None:
        try:
            replace_file(path, dump(profiles).encode())
        except UnconfirmedError as error:
            raise StoreFileError(
                f"{path} now holds version {profiles.version}, but the disk did not confirm it: "
                f"{error.strerror}; a power cut may bring the one before back"
            ) from None
        except OSError as error:
            raise file_error(f"cannot write {path}", error, kept=kept) from None
