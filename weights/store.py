"""The store: one JSON file of profiles that survives crashes, and its earlier versions beside it.

    weights.json              the profiles in force (see store_format)
    weights.json.history/     2.json, 3.json ...: what was in force before
    weights.json.lock         held by whoever writes; empty

A change reads the file under the lock, edits, numbers the result one higher and replaces the file
durably. Readers take no lock and never see half a file. A symbolic link is followed, so the file
it points to is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mixing.spec import MixtureSpec
from weights.durable_file import (
    UnconfirmedError,
    file_lock,
    read_regular_file,
    replace_file,
    sync_folder,
)
from weights.profiles import ProfileSet
from weights.store_errors import (
    StaleVersionError,
    StoreBusyError,
    StoreError,
    StoreFileError,
    StoreFormatError,
    StoreMissingError,
    UnknownEntryError,
)
from weights.store_format import dump, for_mixture, parse

HISTORY_LIMIT = 50
"""Earlier versions that are kept."""

LOCK_TIMEOUT_S = 10.0
"""How long a writer waits for another."""

Edit = Callable[[ProfileSet], ProfileSet]


@dataclass(frozen=True, slots=True)
class Change:
    """What a change did: `after` is in force now, or would be after a dry run."""

    before: ProfileSet | None
    """None for a store that was created."""
    after: ProfileSet

    @property
    def is_noop(self) -> bool:
        """Whether the content was equal already, so that nothing was written."""
        return self.before is not None and self.before.version == self.after.version


class WeightsStore:
    """One store file. Holds no state: every call reads what is on the disk."""

    def __init__(
        self,
        path: Path | str,
        *,
        spec: MixtureSpec | None = None,
        history_limit: int = HISTORY_LIMIT,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
    ) -> None:
        """Names a store; nothing is read yet.

        Args:
          path: the file.
          spec: the mixture it must be for; None accepts any.
          history_limit: earlier versions to keep, >= 1.
          lock_timeout_s: how long a writer waits for another, in seconds.
        """
        assert history_limit >= 1
        self.path = Path(path)
        self.spec = spec
        self._history_limit = history_limit
        self._lock_timeout_s = lock_timeout_s

    def read(self) -> ProfileSet:
        """The profiles on the disk. Raises: StoreError."""
        return self._read(self._target)

    def create(self, initial: ProfileSet) -> ProfileSet:
        """Writes `initial` as version 1 if there is no file; returns what is there.

        Raises: StoreError.
        """
        try:
            return self.read()
        except StoreMissingError:
            pass
        with self._lock():
            try:
                return self.read()
            except StoreMissingError:
                first = replace(initial, version=1)
                self._write(self._target, first, kept="there is still no store")
                return first

    def change(self, edit: Edit, *, expected: str | None = None, dry_run: bool = False) -> Change:
        """Reads, edits and replaces, as one step for every other writer.

        Args:
          edit: from the set on the disk to the wanted one; its version is ignored.
          expected: what the caller last saw, a version number or a sha256; None accepts any.
          dry_run: check everything and write nothing.
        Returns: before and after; equal content keeps the version and writes nothing.
        Raises: StaleVersionError unless the store is what was expected; StoreError; whatever
          `edit` raises. The file is then unchanged.
        """
        if dry_run:
            return self._edited(edit, expected)
        with self._lock():
            change = self._edited(edit, expected)
            self.commit(change)
            return change

    @contextmanager
    def prepared(self, edit: Edit, *, expected: str | None = None) -> Iterator[Change]:
        """`change` in two steps: the lock is held inside, and nothing written until `commit`.

        Raises: as `change`.
        """
        with self._lock():
            yield self._edited(edit, expected)

    def commit(self, change: Change) -> None:
        """Writes a prepared change; only inside `prepared`. Raises: StoreError."""
        if change.before is None or change.is_noop:
            return
        kept = f"version {change.before.version} is kept"
        self._keep(change.before, kept=kept)
        self._write(self._target, change.after, kept=kept)
        self._prune()

    def rollback(
        self, version: int | None = None, *, expected: str | None = None, dry_run: bool = False
    ) -> Change:
        """Makes an earlier version's content the newest version.

        Args: version: the number to return to; None is the one before the present.
        Raises: UnknownEntryError for a version that is not kept; else as `change`.
        """
        return self.change(self.rollback_edit(version), expected=expected, dry_run=dry_run)

    def rollback_edit(self, version: int | None = None) -> Edit:
        """The edit that `rollback` applies."""

        def edit(current: ProfileSet) -> ProfileSet:
            kept = [number for number in self.versions() if number != current.version]
            earlier = [number for number in kept if number < current.version]
            wanted = version if version is not None else max(earlier, default=None)
            if wanted == current.version:
                return current
            if wanted is None or wanted not in kept:
                what = "an earlier version" if wanted is None else f"version {wanted}"
                raise UnknownEntryError(
                    f"{self.path}: {what} is not kept; kept are: "
                    f"{', '.join(map(str, kept)) or 'none'}"
                )
            return self.read_version(wanted)

        return edit

    def versions(self) -> list[int]:
        """Numbers of the earlier versions kept, oldest first. Raises: StoreFileError."""
        folder = self._history_of(self._target)
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreFileError(f"cannot list {folder}: {error.strerror}") from None
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())

    def read_version(self, version: int) -> ProfileSet:
        """One of the earlier versions. Raises: StoreError."""
        return self._read(self._history_of(self._target) / f"{version}.json")

    def history(self) -> list[ProfileSet]:
        """The earlier versions kept, oldest first, then the present one; unreadable ones left out.

        Raises: StoreError if the present one cannot be read.
        """
        found = []
        for version in self.versions():
            try:
                found.append(self.read_version(version))
            except StoreError:
                continue  # made for other policies, or pruned meanwhile
        current = self.read()
        return [entry for entry in found if entry.version != current.version] + [current]

    @property
    def _target(self) -> Path:
        return Path(os.path.realpath(self.path))

    @staticmethod
    def _history_of(target: Path) -> Path:
        return target.with_name(target.name + ".history")

    def _read(self, path: Path) -> ProfileSet:
        try:
            content = read_regular_file(path)
        except FileNotFoundError:
            raise StoreMissingError(f"the weights store {path} does not exist") from None
        except OSError as error:
            raise StoreFileError(
                f"cannot read the weights store {path}: {error.strerror}"
            ) from None
        profiles = parse(content, source=str(path))
        return profiles if self.spec is None else for_mixture(profiles, self.spec, source=str(path))

    def _edited(self, edit: Edit, expected: str | None) -> Change:
        before = self.read()
        check_expected(before, expected)
        after = replace(edit(before), version=before.version + 1)
        if after.sha256 == before.sha256:
            after = before
        # What is about to be written must be readable: the same checks as for a file from outside.
        try:
            parse(dump(after), source=str(self.path))
        except StoreFormatError as error:
            raise StoreFormatError(f"the change would break the store: {error}") from None
        return Change(before, after)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        target = self._target
        lock = target.with_name(target.name + ".lock")
        holder = file_lock(lock, timeout_s=self._lock_timeout_s)
        try:
            holder.__enter__()
        except TimeoutError:
            raise StoreBusyError(
                f"another process has held {lock} for {self._lock_timeout_s:g} s; try again, or "
                "end that process"
            ) from None
        except OSError as error:
            raise StoreFileError(
                f"cannot change the weights store {target}: {lock.name}: {error.strerror}"
            ) from None
        try:
            yield
        finally:
            holder.__exit__(None, None, None)

    def _keep(self, profiles: ProfileSet, *, kept: str) -> None:
        folder = self._history_of(self._target)
        try:
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                sync_folder(folder.parent)
        except OSError as error:
            raise StoreFileError(f"cannot make {folder}: {error.strerror}; {kept}") from None
        self._write(folder / f"{profiles.version}.json", profiles, kept=kept)

    def _write(self, path: Path, profiles: ProfileSet, *, kept: str) -> None:
        try:
            replace_file(path, dump(profiles).encode())
        except UnconfirmedError as error:
            raise StoreFileError(
                f"{path} now holds version {profiles.version}, but the disk did not confirm it: "
                f"{error.strerror}; a power cut may bring the one before back"
            ) from None
        except OSError as error:
            raise StoreFileError(f"cannot write {path}: {error.strerror}; {kept}") from None

    def _prune(self) -> None:
        folder = self._history_of(self._target)
        for version in self.versions()[: -self._history_limit]:
            (folder / f"{version}.json").unlink(missing_ok=True)


def check_expected(profiles: ProfileSet, expected: str | None) -> None:
    """Raises StaleVersionError unless `expected` is None, `*`, the version or the sha256."""
    if expected is None or expected in ("*", str(profiles.version), profiles.sha256):
        return
    raise StaleVersionError(
        f"expected {expected:.80}, but the store is at version {profiles.version} "
        f"(sha256 {profiles.sha256}); read it again and repeat the change"
    )
