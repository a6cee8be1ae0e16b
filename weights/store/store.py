"""The store of profiles: one JSON file that survives crashes, changed one edit at a time.

A change reads the file under the lock, edits, numbers the result one higher and replaces the file
durably. The version before is kept in the history beside it (prefmix.weights.store.files).
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec
from prefmix.weights.store.change import Change, Edit, Rollback, check_expected
from prefmix.weights.store.durable_file import replace_file
from prefmix.weights.store.errors import (
    StoreError,
    StoreFormatError,
    StoreMissingError,
    StoreReadOnlyError,
)
from prefmix.weights.store.files import StoreFiles
from prefmix.weights.store.for_mixture import for_mixture
from prefmix.weights.store.format import dump, parse
from prefmix.weights.store.numbering import Served, numbered
from prefmix.weights.store.profiles import (
    ProfileError,
    ProfileSet,
    check_mixings,
    check_num_profiles,
)
from prefmix.weights.store.signing import signed

HISTORY_LIMIT = 50
"""Earlier versions that are kept."""

LOCK_TIMEOUT_S = 10.0
"""The longest wait of a writer for another writer."""


class WeightsStore:
    """One store file. Holds no state: every call reads the disk."""

    def __init__(
        self,
        path: Path | str,
        *,
        spec: MixtureSpec | None = None,
        history_limit: int = HISTORY_LIMIT,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
        max_profiles: int | None = None,
        takes_added: bool = False,
        takes_dormant: bool = False,
    ) -> None:
        """Names a store; nothing is read yet.

        Args:
          path: the file.
          spec: the mixture that the profiles must be for; None accepts any.
          history_limit: earlier versions to keep, >= 1.
          lock_timeout_s: how long a writer waits for another, in seconds.
          max_profiles: the most profiles that a version may have; None has no limit.
          takes_added: true for a server, which can have a version's added policies.
          takes_dormant: true where profiles may name absent policies.
        """
        self._takes_added, self._takes_dormant = takes_added, takes_dormant
        self.path = Path(path)
        self._max_profiles = max_profiles
        self.spec = spec
        self._files = StoreFiles(
            self.path, history_limit=history_limit, lock_timeout_s=lock_timeout_s
        )

    # --- reading -----------------------------------------------------------------------------

    def read(self, *, served: Served | None = None) -> ProfileSet:
        """The profiles on the disk, under the number that they have or will get.

        Args: served: what a server knows of versions that the disk may have lost.
        Raises: StoreError.
        """
        found, _ = self._look(served)
        return found

    def read_version(self, version: int) -> ProfileSet:
        """One of the earlier versions. Raises: StoreError."""
        path = self._files.version_file(version)
        found = self._read(path)
        if found.version != version:
            raise StoreFormatError(f"{path}: version is {found.version}, but its name says another")
        return found

    def take_up(self, served: Served | None = None, *, wait_s: float | None = None) -> ProfileSet:
        """Reads the profiles to put them in force, as a reload and a start do.

        A restored file is written again under a number above all that were given. The version whose
        file another has replaced goes into the history. Where nothing can be written, the file has
        the number that it says: there no change can be made that two files' numbers could confuse.

        Args:
          served: what the server knows; None at its start.
          wait_s: how long to wait for another writer at most, if not as long as usual.
        Raises: StoreError.
        """
        found, is_renumbered = self._look(served)
        displaced = self._displaced(found, served)
        newest = self._files.newest()
        if not (is_renumbered or displaced or 0 < newest < found.version):
            return found
        try:
            with self._files.locked(wait_s=wait_s):
                found, is_renumbered = self._look(served)
                if (displaced := self._displaced(found, served)) is not None:
                    self._files.keep_version(displaced, kept="")
                if is_renumbered:
                    self._files.write(found, kept="the file stays as it is")
                self._files.note_newest(found.version)
                return found
        except StoreReadOnlyError:
            return self._read(self._files.current)
        except StoreError:
            if is_renumbered:
                raise
            return found

    def versions(self) -> list[int]:
        """Numbers of the earlier versions kept, oldest first. Raises: StoreFileError."""
        return self._files.versions()

    def history(self) -> list[ProfileSet]:
        """The earlier versions kept, oldest first, then the present one; unreadable ones left out.

        Raises: StoreError if the present one cannot be read.
        """
        return list(self.each_version())

    def each_version(self) -> Iterator[ProfileSet]:
        """The sets of `history`, read one at a time, as each may hold megabytes.

        Raises: StoreError, at once, if the present one or the history's folder cannot be read.
        """
        current = self.read()
        versions = [number for number in self.versions() if number != current.version]
        return itertools.chain(self._readable(versions), [current])

    def _readable(self, versions: Iterable[int]) -> Iterator[ProfileSet]:
        for version in versions:
            with contextlib.suppress(StoreError):  # made for other policies, or pruned meanwhile
                yield self.read_version(version)

    def _look(self, served: Served | None) -> tuple[ProfileSet, bool]:
        """The profiles on the disk, and if they have another number here than in the file."""
        current = self._files.current
        # In this order: a writer replaces the file before it notes the number.
        newest = max(self._files.newest(), 0 if served is None else served.newest)
        raw = self._read(current)
        known = self._sha256_of(raw.version, served) if raw.version <= newest else None
        found = numbered(raw, newest=newest, known_sha256=known, served=served, source=str(current))
        return found, found.version != raw.version

    def _sha256_of(self, version: int, served: Served | None) -> str | None:
        """The hash of the content that a number was given for; None if it is not known."""
        if served is not None and (known := served.sha256(version)) is not None:
            return known
        if not self._files.has_version(version):
            return None
        try:
            return self.read_version(version).sha256
        except StoreError:
            return None

    def _displaced(self, found: ProfileSet, served: Served | None) -> ProfileSet | None:
        """The set in force if its file has gone without being kept; else None."""
        if served is None or served.in_force.version == found.version:
            return None
        return None if self._files.has_version(served.in_force.version) else served.in_force

    def _read(self, path: Path) -> ProfileSet:
        content = self._files.read(path)
        profiles = parse(content, source=str(path), max_profiles=self._max_profiles)
        if self.spec is None:
            return profiles
        try:
            check_mixings(profiles, self.spec)
        except ProfileError as error:
            raise StoreFormatError(f"{path}: {error}") from None
        return for_mixture(
            profiles,
            self.spec,
            source=str(path),
            takes_added=self._takes_added,
            takes_dormant=self._takes_dormant,
        )

    # --- changing ----------------------------------------------------------------------------

    def create(self, initial: ProfileSet) -> ProfileSet:
        """Writes `initial` if there is no file; returns the profiles on the disk.

        It becomes version 1, or the next if the file of a store with a history is missing.

        Raises: StoreError, ProfileError.
        """
        try:
            return self.take_up()
        except StoreMissingError:
            check_num_profiles(len(initial.profiles) + len(initial.dormant), self._max_profiles)
        with self._files.locked():
            try:
                return self.read()
            except StoreMissingError:
                first = signed(replace(initial, version=self.next_version()), by=None)
                self._files.write(first, kept="there is still no store")
                return first

    def start_over(self, first: ProfileSet) -> None:
        """Writes `first` in the place of whatever the file holds, without looking at it.

        Raises: StoreBusyError, StoreFileError; OSError if the file cannot be replaced.
        """
        with self._files.locked():
            replace_file(self._files.current, dump(first).encode())

    def next_version(self) -> int:
        """The number that a new store file would get: above all that were given."""
        return self._files.newest() + 1

    def change(
        self,
        edit: Edit,
        *,
        expected: str | None = None,
        dry_run: bool = False,
        served: Served | None = None,
        by: str | None = None,
    ) -> Change:
        """Reads, edits and replaces, as one step for every other writer.

        Args:
          edit: from the set on the disk to the wanted one; its version is ignored.
          expected: the version number or sha256 that the caller last saw; None accepts any.
          dry_run: check everything and write nothing.
          served: what the caller knows from serving: for a Rollback of a broken file, its last
            good version.
          by: the author's name; None is the user of this process.
        Returns: before and after; equal content keeps the version and writes nothing.
        Raises: StaleVersionError if the store is not at `expected`; StoreError; whatever `edit`
          raises. The file is then unchanged.
        """
        if dry_run:
            return self._edited(edit, expected, served, by)
        with self.prepared(edit, expected=expected, served=served, by=by) as change:
            self.commit(change)
            return change

    @contextmanager
    def prepared(
        self,
        edit: Edit,
        *,
        expected: str | None = None,
        served: Served | None = None,
        wait_s: float | None = None,
        by: str | None = None,
    ) -> Iterator[Change]:
        """`change` in two steps: holds the lock inside, and writes nothing until `commit`.

        Args:
          wait_s: how long to wait for another writer at most, if not as long as usual.
          by: the author's name; None is the user of this process.
        Raises: as `change`.
        """
        if not os.path.exists(self.path):
            # Most edits fail: then no lock's file shall lie where there is no store.
            self._edited(edit, expected, served, by)
        with self._files.locked(wait_s=wait_s):
            yield self._edited(edit, expected, served, by)

    def commit(self, change: Change) -> None:
        """Writes a prepared change; only inside `prepared`. Raises: StoreError."""
        if change.before is None or (change.is_noop and not change.is_renumbered):
            return
        kept = f"version {change.before.version} is kept"
        if change.set_aside is not None:
            self._files.keep_broken(change.set_aside)
        if change.displaced is not None:
            self._files.keep_version(change.displaced, kept=kept)
        if not change.is_noop and self._needs_keeping(change):
            self._files.keep_version(change.before, kept=kept)
        self._files.write(change.after, kept=kept)
        self._files.note_newest(change.after.version)
        self._files.prune()

    def _needs_keeping(self, change: Change) -> bool:
        assert change.before is not None, "commit() has looked"
        return change.set_aside is None or change.before.version not in self.versions()

    def rollback(
        self, version: int | None = None, *, expected: str | None = None, dry_run: bool = False
    ) -> Change:
        """Makes an earlier version's content the newest version.

        Args: version: the number to return to; None is the one before the present.
        Raises: UnknownEntryError for a version that is not kept; else as `change`.
        """
        return self.change(Rollback(self, version), expected=expected, dry_run=dry_run)

    def _edited(
        self, edit: Edit, expected: str | None, served: Served | None, by: str | None
    ) -> Change:
        try:
            before, is_renumbered = self._look(served)
        except (StoreFormatError, StoreMissingError) as broken:
            if isinstance(edit, Rollback):
                change = self._repaired(edit, expected, served, broken)
                return replace(change, after=signed(change.after, by=by))
            hint = "; 'prefmix weights rollback' returns to the last version kept"
            has_one = served is not None or self.versions()
            raise type(broken)(f"{broken}{hint if has_one else ''}") from None
        check_expected(before, expected)
        after = signed(replace(edit(before), version=before.version + 1), by=by)
        check_num_profiles(len(after.profiles) + len(after.dormant), self._max_profiles)
        if self.spec is not None:
            check_mixings(after, self.spec)
        if after.sha256 == before.sha256:
            after = before
        # What is about to be written must be readable: the same checks as for a file from outside.
        try:
            parse(dump(after), source=str(self.path))
        except StoreFormatError as error:
            raise StoreFormatError(f"the change would break the store: {error}") from None
        displaced = self._displaced(before, served)
        return Change(before, after, displaced=displaced, is_renumbered=is_renumbered)

    def _repaired(
        self,
        rollback: Rollback,
        expected: str | None,
        served: Served | None,
        broken: StoreError,
    ) -> Change:
        """The change that puts a good version in the place of a missing or broken file."""
        good = {entry.version: entry for entry in self._readable(self.versions())}
        if served is not None:
            good[served.in_force.version] = served.in_force
        if not good:
            raise type(broken)(f"{broken}; there is no earlier version to return to")
        self._files.check_repairable()
        last = good[max(good)]
        check_expected(last, expected)
        wanted = last.version if rollback.version is None else rollback.version
        if wanted not in good:
            raise rollback.not_kept(wanted, sorted(good))
        newest = self._files.newest()
        highest = max([*self.versions(), last.version]) + 1
        if isinstance(broken, StoreMissingError):
            return Change(last, replace(good[wanted], version=max(highest, newest + 1)))
        # The broken file has had a number too, most likely the next; a number means one content.
        version = max(highest, newest, self._files.claimed_version()) + 1
        after = replace(good[wanted], version=version)
        return Change(last, after, self._files.broken_file(version))
