"""The store of profiles: one JSON file that survives crashes, changed one edit at a time.

A change reads the file under the lock, edits, numbers the result one higher and replaces the file
durably. The version before is kept in the history beside it (prefmix.weights.store.files).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec
from prefmix.weights.store.errors import (
    StaleVersionError,
    StoreError,
    StoreFormatError,
    StoreMissingError,
    UnknownEntryError,
)
from prefmix.weights.store.files import StoreFiles
from prefmix.weights.store.format import dump, for_mixture, parse
from prefmix.weights.store.profiles import ProfileSet

HISTORY_LIMIT = 50
"""Earlier versions that are kept."""

LOCK_TIMEOUT_S = 10.0
"""The longest wait of a writer for another writer."""

Edit = Callable[[ProfileSet], ProfileSet]


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the store: `after` is in force now, or would be after a dry run."""

    before: ProfileSet | None
    """None if the store was created; if it was broken, the last version that can be read."""
    after: ProfileSet
    set_aside: Path | None = None
    """The copy of a broken file; None if there was nothing to repair."""

    @property
    def is_noop(self) -> bool:
        """True if the content was equal already, so that nothing was written."""
        return self.before is not None and self.before.version == self.after.version


@dataclass(frozen=True, slots=True)
class Rollback:
    """The edit that makes an earlier version's content the newest version.

    It is the only edit that works on a missing or unreadable file: it then returns to the last
    readable version, or to the named one, and keeps the broken file beside the store.
    """

    store: WeightsStore
    version: int | None = None
    """None is the version before the present one, or before the broken file."""

    def __call__(self, current: ProfileSet) -> ProfileSet:
        """The earlier content. Raises: UnknownEntryError for a version that is not kept."""
        kept = [number for number in self.store.versions() if number != current.version]
        earlier = [number for number in kept if number < current.version]
        wanted = self.version if self.version is not None else max(earlier, default=None)
        if wanted == current.version:
            return current
        if wanted is None or wanted not in kept:
            raise self.not_kept(wanted, kept)
        return self.store.read_version(wanted)

    def not_kept(self, wanted: int | None, kept: Sequence[int]) -> UnknownEntryError:
        """The error for a version that is not kept."""
        what = "an earlier version" if wanted is None else f"version {wanted}"
        return UnknownEntryError(
            f"{self.store.path}: {what} is not kept; kept are: "
            f"{', '.join(map(str, kept)) or 'none'}"
        )


class WeightsStore:
    """One store file. Holds no state: every call reads the disk."""

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
          spec: the mixture that the profiles must be for; None accepts any.
          history_limit: earlier versions to keep, >= 1.
          lock_timeout_s: how long a writer waits for another, in seconds.
        """
        self.path = Path(path)
        self.spec = spec
        self._files = StoreFiles(
            self.path, history_limit=history_limit, lock_timeout_s=lock_timeout_s
        )

    # --- reading -----------------------------------------------------------------------------

    def read(self) -> ProfileSet:
        """The profiles on the disk. Raises: StoreError."""
        return self._read(self._files.current)

    def read_version(self, version: int) -> ProfileSet:
        """One of the earlier versions. Raises: StoreError."""
        return self._read(self._files.version_file(version))

    def versions(self) -> list[int]:
        """Numbers of the earlier versions kept, oldest first. Raises: StoreFileError."""
        return self._files.versions()

    def history(self) -> list[ProfileSet]:
        """The earlier versions kept, oldest first, then the present one; unreadable ones left out.

        Raises: StoreError if the present one cannot be read.
        """
        current = self.read()
        return [entry for entry in self._earlier() if entry.version != current.version] + [current]

    def _earlier(self) -> list[ProfileSet]:
        found = []
        for version in self.versions():
            try:
                found.append(self.read_version(version))
            except StoreError:
                continue  # made for other policies, or pruned meanwhile
        return found

    def _read(self, path: Path) -> ProfileSet:
        profiles = parse(self._files.read(path), source=str(path))
        return profiles if self.spec is None else for_mixture(profiles, self.spec, source=str(path))

    # --- changing ----------------------------------------------------------------------------

    def create(self, initial: ProfileSet) -> ProfileSet:
        """Writes `initial` as version 1 if there is no file; returns the profiles on the disk.

        Raises: StoreError.
        """
        try:
            return self.read()
        except StoreMissingError:
            pass
        with self._files.locked():
            try:
                return self.read()
            except StoreMissingError:
                first = replace(initial, version=1)
                self._files.write(first, kept="there is still no store")
                return first

    def change(
        self,
        edit: Edit,
        *,
        expected: str | None = None,
        dry_run: bool = False,
        in_force: ProfileSet | None = None,
    ) -> Change:
        """Reads, edits and replaces, as one step for every other writer.

        Args:
          edit: from the set on the disk to the wanted one; its version is ignored.
          expected: the version number or sha256 that the caller last saw; None accepts any.
          dry_run: check everything and write nothing.
          in_force: the profiles that the caller serves: for a Rollback of a broken file, its last
            good version.
        Returns: before and after; equal content keeps the version and writes nothing.
        Raises: StaleVersionError if the store is not at `expected`; StoreError; whatever `edit`
          raises. The file is then unchanged.
        """
        if dry_run:
            return self._edited(edit, expected, in_force)
        with self._files.locked():
            change = self._edited(edit, expected, in_force)
            self.commit(change)
            return change

    @contextmanager
    def prepared(
        self, edit: Edit, *, expected: str | None = None, in_force: ProfileSet | None = None
    ) -> Iterator[Change]:
        """`change` in two steps: holds the lock inside, and writes nothing until `commit`.

        Raises: as `change`.
        """
        with self._files.locked():
            yield self._edited(edit, expected, in_force)

    def commit(self, change: Change) -> None:
        """Writes a prepared change; only inside `prepared`. Raises: StoreError."""
        if change.before is None or change.is_noop:
            return
        kept = f"version {change.before.version} is kept"
        if change.set_aside is not None:
            self._files.keep_broken(change.set_aside)
        if change.set_aside is None or change.before.version not in self.versions():
            self._files.keep_version(change.before, kept=kept)
        self._files.write(change.after, kept=kept)
        self._files.prune()

    def rollback(
        self, version: int | None = None, *, expected: str | None = None, dry_run: bool = False
    ) -> Change:
        """Makes an earlier version's content the newest version.

        Args: version: the number to return to; None is the one before the present.
        Raises: UnknownEntryError for a version that is not kept; else as `change`.
        """
        return self.change(Rollback(self, version), expected=expected, dry_run=dry_run)

    def _edited(self, edit: Edit, expected: str | None, in_force: ProfileSet | None) -> Change:
        try:
            before = self.read()
        except (StoreFormatError, StoreMissingError) as broken:
            if isinstance(edit, Rollback):
                return self._repaired(edit, expected, in_force, broken)
            hint = "; 'prefmix weights rollback' returns to the last version kept"
            has_one = in_force is not None or self.versions()
            raise type(broken)(f"{broken}{hint if has_one else ''}") from None
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

    def _repaired(
        self,
        rollback: Rollback,
        expected: str | None,
        in_force: ProfileSet | None,
        broken: StoreError,
    ) -> Change:
        """The change that puts a good version in the place of a missing or broken file."""
        good = {entry.version: entry for entry in self._earlier()}
        if in_force is not None:
            good[in_force.version] = in_force
        if not good:
            raise type(broken)(f"{broken}; there is no earlier version to return to")
        last = good[max(good)]
        check_expected(last, expected)
        wanted = last.version if rollback.version is None else rollback.version
        if wanted not in good:
            raise rollback.not_kept(wanted, sorted(good))
        # The broken file has had a number too, most likely the next; a number means one content.
        highest = max([*self.versions(), last.version]) + 1
        if isinstance(broken, StoreMissingError):
            return Change(last, replace(good[wanted], version=highest))
        version = max(highest, self._files.claimed_version()) + 1
        after = replace(good[wanted], version=version)
        return Change(last, after, self._files.broken_file(version))


def check_expected(profiles: ProfileSet, expected: str | None) -> None:
    """Raises StaleVersionError unless `expected` is None, `*`, the version or the sha256."""
    if expected is None or expected in ("*", str(profiles.version), profiles.sha256):
        return
    raise StaleVersionError(
        f"expected {expected:.80}, but the store is at version {profiles.version} "
        f"(sha256 {profiles.sha256}); read it again and repeat the change"
    )
