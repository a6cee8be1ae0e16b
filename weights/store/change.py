"""One change of the store: its edit, its outcome, and the condition under which it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prefmix.mixing.name_list import listed
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.weights.store.errors import StaleVersionError, UnknownEntryError
from prefmix.weights.store.profiles import ProfileSet

Edit = Callable[[ProfileSet], ProfileSet]


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the store: `after` is in force now, or would be after a dry run."""

    before: ProfileSet | None
    """None if the store was created; if it was broken, the last version that can be read."""
    after: ProfileSet
    set_aside: Path | None = None
    """The copy of a broken file; None if there was nothing to repair."""
    displaced: ProfileSet | None = None
    """The set in force whose file another has replaced from outside; it goes to the history."""
    is_renumbered: bool = False
    """True if the file bears a number that `before` does not have, as it is a restored one."""

    @property
    def is_noop(self) -> bool:
        """True if the content was equal already, so that nothing was written."""
        return self.before is not None and self.before.version == self.after.version

    @property
    def lost_mixings(self) -> dict[str, Mixing]:
        """The way to mix of profiles that had one of their own and now have the server's.

        Whoever replaces a profile, and forgets its way to mix, should hear of it.
        """
        before = {} if self.before is None else self.before.mixings
        return {
            name: mixing
            for name, mixing in before.items()
            if name in self.after.profiles and name not in self.after.mixings
        }


class Kept(Protocol):
    """A store, as far as a rollback needs it."""

    path: Path

    def versions(self) -> list[int]:
        """Numbers of the earlier versions kept, oldest first."""

    def read_version(self, version: int) -> ProfileSet:
        """One of the earlier versions."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """The edit that makes an earlier version's content the newest version.

    It is the only edit that works on a missing or unreadable file: it then returns to the last
    readable version, or to the named one, and keeps the broken file beside the store.
    """

    store: Kept
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
            f"{self.store.path}: {what} is not kept; kept are: {listed(kept) or 'none'}"
        )


def check_expected(profiles: ProfileSet, expected: str | None) -> None:
    """Raises StaleVersionError unless `expected` is None, `*`, the version or the sha256."""
    if expected is None or expected in ("*", str(profiles.version), profiles.sha256):
        return
    raise StaleVersionError(
        f"expected {expected[:80] or 'an empty text'}, but the store is at version "
        f"{profiles.version} (sha256 {profiles.sha256}); read it again and repeat the change"
    )
