"""The store: one JSON file of profiles that survives crashes, and its earlier versions beside it.

    weights.json              the profiles in force (see store_format)
    weights.json.history/     2.json, 3.json ...: what was in force before
    weights.json.lock         held by whoever writes; empty
    weights.json.broken.7     what a rollback found in place of a store before it wrote version 7

A change reads the file under the lock, edits, numbers the result one higher and replaces the file
durably. Readers take no lock and never see half a file. A symbolic link is followed, so the file
it points to is replaced.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec
from prefmix.weights.store.durable_file import (
    UnconfirmedError,
    file_lock,
    read_regular_file,
    replace_file,
    sync_folder,
)
from prefmix.weights.store.errors import (
    StaleVersionError,
    StoreBusyError,
    StoreError,
    StoreFileError,
    StoreFormatError,
    StoreMissingError,
    UnknownEntryError,
    file_error,
)
from prefmix.weights.store.format import MAX_BYTES, dump, for_mixture, parse
from prefmix.weights.store.profiles import ProfileSet

HISTORY_LIMIT = 50
"""Earlier versions that are kept."""

LOCK_TIMEOUT_S = 10.0
"""How long a writer waits for another."""

Edit = Callable[[ProfileSet], ProfileSet]


@dataclass(frozen=True, slots=True)
class Change:
    """What a change did: `after` is in force now, or would be after a dry run."""

    before: ProfileSet | None
    """None for a store that was created; for one that was broken, the last that could be read."""
    after: ProfileSet
    set_aside: Path | None = None
    """Where the content of a broken file is kept; None if there was nothing to repair."""

    @property
    def is_noop(self) -> bool:
        """Whether the content was equal already, so that nothing was written."""
        return self.before is not None and self.before.version == self.after.version


@dataclass(frozen=True, slots=True)
class Rollback:
    """The edit that makes an earlier version's content the newest version.

    The only one that no file, or one that cannot be read, does not stop: it returns to the last
    version that can, or to the one named, and a broken file is kept beside the store.
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
        """The refusal."""
        what = "an earlier version" if wanted is None else f"version {wanted}"
        return UnknownEntryError(
            f"{self.store.path}: {what} is not kept; kept are: "
            f"{', '.join(map(str, kept)) or 'none'}"
        )


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
          expected: what the caller last saw, a version number or a sha256; None accepts any.
          dry_run: check everything and write nothing.
          in_force: what the caller serves: for a Rollback, the last good version of a broken file.
        Returns: before and after; equal content keeps the version and writes nothing.
        Raises: StaleVersionError unless the store is what was expected; StoreError; whatever
          `edit` raises. The file is then unchanged.
        """
        if dry_run:
            return self._edited(edit, expected, in_force)
        with self._lock():
            change = self._edited(edit, expected, in_force)
            self.commit(change)
            return change

    @contextmanager
    def prepared(
        self, edit: Edit, *, expected: str | None = None, in_force: ProfileSet | None = None
    ) -> Iterator[Change]:
        """`change` in two steps: the lock is held inside, and nothing written until `commit`.

        Raises: as `change`.
        """
        with self._lock():
            yield self._edited(edit, expected, in_force)

    def commit(self, change: Change) -> None:
        """Writes a prepared change; only inside `prepared`. Raises: StoreError."""
        if change.before is None or change.is_noop:
            return
        kept = f"version {change.before.version} is kept"
        if change.set_aside is not None:
            self._copy(change.set_aside)
        if change.set_aside is None or change.before.version not in self.versions():
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
        return self.change(Rollback(self, version), expected=expected, dry_run=dry_run)

    def versions(self) -> list[int]:
        """Numbers of the earlier versions kept, oldest first. Raises: StoreFileError."""
        folder = self._history_of(self._target)
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise file_error(f"cannot list {folder}", error) from None
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())

    def read_version(self, version: int) -> ProfileSet:
        """One of the earlier versions. Raises: StoreError."""
        return self._read(self._history_of(self._target) / f"{version}.json")

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

    @property
    def _target(self) -> Path:
        return Path(os.path.realpath(self.path))

    @staticmethod
    def _history_of(target: Path) -> Path:
        return target.with_name(target.name + ".history")

    def _read(self, path: Path) -> ProfileSet:
        profiles = parse(self._content(path), source=str(path))
        return profiles if self.spec is None else for_mixture(profiles, self.spec, source=str(path))

    @staticmethod
    def _content(path: Path) -> bytes:
        try:
            return read_regular_file(path, most=MAX_BYTES + 1)
        except FileNotFoundError:
            raise StoreMissingError(f"the weights store {path} does not exist") from None
        except OSError as error:
            raise file_error(f"cannot read the weights store {path}", error) from None

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
        """The change that puts a good version in the place of no file, or of a broken one."""
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
        target = self._target
        if isinstance(broken, StoreMissingError):
            return Change(last, replace(good[wanted], version=highest))
        after = replace(good[wanted], version=max(highest, self._claimed_version()) + 1)
        return Change(last, after, target.with_name(f"{target.name}.broken.{after.version}"))

    def _claimed_version(self) -> int:
        """The version that a file which cannot be read says it is; 0 if it says none."""
        found = re.search(rb'"version"\s*:\s*([1-9][0-9]{0,8})\b', self._content(self._target))
        return 0 if found is None else int(found[1])

    def _copy(self, aside: Path) -> None:
        try:
            replace_file(aside, read_regular_file(self._target))
        except OSError as error:
            what = f"cannot keep the broken file as {aside}"
            raise file_error(what, error, kept="nothing was changed") from None

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
            what = f"cannot change the weights store {target}: {lock.name}"
            raise file_error(what, error) from None
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
            raise file_error(f"cannot make {folder}", error, kept=kept) from None
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
            raise file_error(f"cannot write {path}", error, kept=kept) from None

    def _prune(self) -> None:
        folder = self._history_of(self._target)
        with contextlib.suppress(OSError):  # the change is made: a version too many harms nobody
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
