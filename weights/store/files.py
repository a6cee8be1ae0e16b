"""The files of a store: the current one, its earlier versions, its lock, and what goes wrong there.

    weights.json              the profiles in force (prefmix.weights.store.format)
    weights.json.history/     2.json, 3.json ...: the versions that were in force before
    weights.json.history/newest   the highest number that a version has had
    weights.json.lock         held by the process that writes; empty
    weights.json.broken.7     the unreadable content that version 7 replaced in a rollback

Readers take no lock and never see half a file. A symbolic link is followed: the file that it points
to is replaced, and has the history. All of them have the owner and the rights of the store file,
whoever writes; those that hold system texts of policies are for their owner and group alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefmix.weights.store.durable_file import (
    UnconfirmedError,
    file_lock,
    make_folder,
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
from prefmix.weights.store.format import MAX_BYTES, MAX_VERSION, dump
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
            linked = f"{self._path}, a link to " if os.path.islink(self._path) else ""
            raise file_error(f"cannot read the weights store {linked}{path}", error) from None

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
        return sorted(int(stem) for stem in stems if _is_version(stem))

    def newest(self) -> int:
        """The highest number that a version is known to have had; 0 if none is known.

        Read it before the store file, which a writer replaces first.
        """
        noted, kept = "", []
        # What cannot be read says nothing: it must not stop the reading of the store itself.
        with contextlib.suppress(OSError):
            noted = read_regular_file(self._newest, most=32).strip().decode(errors="replace")
        with contextlib.suppress(StoreFileError):
            kept = self.versions()
        return max([int(noted) if _is_version(noted) else 0, *kept])

    def has_version(self, version: int) -> bool:
        """True if an earlier version is kept."""
        return self.version_file(version).is_file()

    @contextmanager
    def locked(self, *, wait_s: float | None = None) -> Iterator[None]:
        """Holds the lock between writers. Raises: StoreBusyError, StoreFileError.

        Args: wait_s: how long to wait at most, if not as long as usual.
        """
        current = self.current
        lock = current.with_name(current.name + ".lock")
        timeout_s = self._lock_timeout_s if wait_s is None else min(wait_s, self._lock_timeout_s)
        holder = file_lock(lock, timeout_s=timeout_s, like=current)
        try:
            holder.__enter__()
        except TimeoutError:
            raise StoreBusyError(
                f"another process has held {lock} for {timeout_s:.2g} s; try again, or end that "
                "process"
            ) from None
        except FileNotFoundError:
            raise StoreFileError(
                f"the folder {current.parent} of the weights store {current.name} does not exist; "
                "make it first, or name a file in another folder"
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

    def note_newest(self, version: int) -> None:
        """Notes a number as given, so that a file restored later cannot bear it again."""
        with contextlib.suppress(OSError):  # the change is made; the history has the one before
            make_folder(self._history, like=self.current)
            replace_file(self._newest, f"{version}\n".encode(), like=self.current)

    def keep_version(self, profiles: ProfileSet, *, kept: str) -> None:
        """Writes an earlier version into the history. Raises: as `write`."""
        folder = self._history
        try:
            if make_folder(folder, like=self.current):
                sync_folder(folder.parent)
        except OSError as error:
            raise file_error(f"cannot make {folder}", error, kept=kept) from None
        self._write(self.version_file(profiles.version), profiles, kept=kept)

    def keep_broken(self, copy: Path) -> None:
        """Keeps an unreadable store file before it is replaced. Raises: StoreFileError."""
        current = self.current
        try:
            if os.stat(current).st_size > MAX_BYTES:
                # Whatever its size is: the file itself gets a second name.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(copy)
                os.link(current, copy)
            else:
                content = read_regular_file(current, most=MAX_BYTES)
                replace_file(copy, content, like=current, is_private=b'"system"' in content)
        except OSError as error:
            what = f"cannot keep the broken file as {copy}"
            raise file_error(what, error, kept="nothing was changed") from None

    def check_repairable(self) -> None:
        """Raises StoreFileError if the store is a link to a file that has never been a store.

        The repair of an unreadable store would overwrite whatever the link points to.
        """
        if os.path.islink(self._path) and not self._history.is_dir():
            error = OSError(errno.ELOOP, f"{self.current}, to which it links, is not a store")
            raise file_error(f"cannot repair the weights store {self._path}", error)

    def prune(self) -> None:
        """Removes the oldest versions above the limit."""
        # The change is made: a version too many harms nobody.
        with contextlib.suppress(OSError, StoreFileError):
            for version in self.versions()[: -self._history_limit]:
                self.version_file(version).unlink(missing_ok=True)

    @property
    def _history(self) -> Path:
        current = self.current
        return current.with_name(current.name + ".history")

    @property
    def _newest(self) -> Path:
        return self._history / "newest"

    def _write(self, path: Path, profiles: ProfileSet, *, kept: str) -> None:
        try:
            has_texts = any(each.system is not None for each in profiles.added.values())
            content = dump(profiles).encode()
            replace_file(path, content, like=self.current, is_private=has_texts)
        except UnconfirmedError as error:
            raise StoreFileError(
                f"{path} now holds version {profiles.version}, but the disk did not confirm it: "
                f"{error.strerror}; a power cut may bring the one before back"
            ) from None
        except OSError as error:
            raise file_error(f"cannot write {path}", error, kept=kept) from None


def _is_version(text: str) -> bool:
    """True for a version's number as we write it; `03` is another name."""
    is_short = len(text) <= len(str(MAX_VERSION)) and text.isascii() and text.isdigit()
    return is_short and str(int(text)) == text and 1 <= int(text) <= MAX_VERSION
