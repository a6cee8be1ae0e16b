"""The target of a command: a store file, or a running server (`server_target`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from prefmix.mixing.ways_to_mix import Mixing
from prefmix.weights.store import edits
from prefmix.weights.store.change import Change, Edit, Rollback
from prefmix.weights.store.durable_file import read_regular_file
from prefmix.weights.store.errors import StoreFileError, StoreMissingError
from prefmix.weights.store.format import MAX_BYTES, parse
from prefmix.weights.store.profiles import ProfileSet
from prefmix.weights.store.store import WeightsStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Precondition:
    """The condition under which a change is made."""

    expected: str | None = None
    """Version or sha256 that must still be in force; None accepts any."""
    dry_run: bool = False
    """True checks everything and changes nothing."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The outcome of a change."""

    previous_version: int | None
    """The version before; None if there was no store."""
    version: int
    sha256: str
    is_changed: bool
    set_aside: str | None = None
    """Path at which the content of a broken store file is kept; None if it was not broken."""
    lost_mixings: Mapping[str, str] = field(default_factory=dict)
    """Profiles that had a way to mix of their own before, with that way."""
    dormant: Mapping[str, list[str]] = field(default_factory=dict)
    """The dormant profiles, each with the absent policies that it names."""

    @classmethod
    def of(cls, change: Change) -> Receipt:
        """Reports a change of a store file."""
        before = None if change.before is None else change.before.version
        aside = None if change.set_aside is None else str(change.set_aside)
        version, sha256 = change.after.version, change.after.sha256
        is_changed, lost = not change.is_noop, change.lost_mixings
        return cls(before, version, sha256, is_changed, aside, lost, change.after.waiting())


class Target(Protocol):
    """A place where profiles are kept. Every method may raise ValueError, one sentence."""

    name: str

    def read(self) -> ProfileSet:
        """Reads the profiles in force."""

    def history(self) -> list[ProfileSet]:
        """Reads every version that is kept, the present one last."""

    def set_profile(
        self,
        name: str,
        preferences: Mapping[str, float],
        precondition: Precondition,
        *,
        mixing: Mixing | None = None,
    ) -> Receipt:
        """Adds or replaces a profile. Args: mixing: its way to mix; None leaves it to the
        server."""

    def delete_profile(self, name: str, precondition: Precondition) -> Receipt:
        """Removes a profile."""

    def set_default(self, name: str, precondition: Precondition) -> Receipt:
        """Makes a profile the default."""

    def rollback(
        self, version: int | None, precondition: Precondition, *, drain: bool = False
    ) -> Receipt:
        """Returns to an earlier version's content. Args: drain: waits for requests under way
        where policies have no slots left but those that are in use; for servers only."""

    def apply(
        self,
        file: Path,
        precondition: Precondition,
        *,
        replace: bool = False,
        with_its_default: bool = False,
    ) -> Receipt:
        """Merges the profiles of a file in the store's format, or replaces all profiles by them."""


def read_profiles(path: Path) -> ProfileSet:
    """Reads and checks a file in the store's format. Raises: StoreError."""
    try:
        content = read_regular_file(path, most=MAX_BYTES + 1)
    except FileNotFoundError:
        raise StoreMissingError(f"{path} does not exist") from None
    except OSError as error:
        raise StoreFileError(f"cannot read {path}: {error.strerror}") from None
    return parse(content, source=str(path))


class FileTarget:
    """A store file, changed under its lock."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._store = WeightsStore(path)

    def read(self) -> ProfileSet:
        """See Target."""
        return self._store.read()

    def history(self) -> list[ProfileSet]:
        """See Target."""
        return self._store.history()

    def set_profile(
        self,
        name: str,
        preferences: Mapping[str, float],
        precondition: Precondition,
        *,
        mixing: Mixing | None = None,
    ) -> Receipt:
        """See Target."""
        return self._change(
            lambda current: edits.with_profile(current, name, preferences, mixing=mixing),
            precondition,
        )

    def delete_profile(self, name: str, precondition: Precondition) -> Receipt:
        """See Target."""
        return self._change(lambda current: edits.without_profile(current, name), precondition)

    def set_default(self, name: str, precondition: Precondition) -> Receipt:
        """See Target."""
        return self._change(lambda current: edits.with_default(current, name), precondition)

    def rollback(
        self, version: int | None, precondition: Precondition, *, drain: bool = False
    ) -> Receipt:
        """See Target."""
        assert not drain, "a file has no requests"
        return self._change(Rollback(self._store, version), precondition)

    def apply(
        self,
        file: Path,
        precondition: Precondition,
        *,
        replace: bool = False,
        with_its_default: bool = False,
    ) -> Receipt:
        """See Target. A store that does not exist is created from the file."""
        other = read_profiles(file)
        merged = partial(edits.merged, with_its_default=with_its_default)
        edit = edits.replaced if replace else merged
        if precondition.expected is None and not self._store.path.exists():
            next_version = self._store.next_version()
            first = other if precondition.dry_run else self._store.create(other)
            if precondition.dry_run or first.sha256 == other.sha256:
                return Receipt(None, next_version, first.sha256, is_changed=True)
        return self._change(lambda current: edit(current, other, source=str(file)), precondition)

    def _change(self, edit: Edit, precondition: Precondition) -> Receipt:
        try:
            change = self._store.change(
                edit, expected=precondition.expected, dry_run=precondition.dry_run
            )
        except StoreMissingError as error:
            raise StoreMissingError(
                f"{error}; make it with 'prefmix weights apply FILE', where FILE is what 'prefmix "
                "fit --output FILE' wrote or another store, or let 'prefmix serve --weights-store "
                "PATH' make it"
            ) from None
        return Receipt.of(change)
