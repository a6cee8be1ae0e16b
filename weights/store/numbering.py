"""Version numbers of files that come from outside: a number means one content and never returns.

A store file may be put in place by hand, by a deployment or from a backup. Its number counts if it
is higher than every number given before. A lower one is that of a restored file, whose content is
in force again as the newest version; the file gets the next number. A number that other content
has had is an error: someone has edited a file and forgotten to raise it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from prefmix.weights.store.errors import StoreFormatError
from prefmix.weights.store.profiles import ProfileSet


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """The versions that a server knows from serving them."""

    in_force: ProfileSet
    sha256_of: Mapping[int, str] = field(default_factory=dict)
    """Content hashes by version, of those served lately."""

    @property
    def newest(self) -> int:
        """The highest number served."""
        return max(self.in_force.version, *self.sha256_of, 0)

    def sha256(self, version: int) -> str | None:
        """The content hash of a version; None if it is not known."""
        if version == self.in_force.version:
            return self.in_force.sha256
        return self.sha256_of.get(version)


def numbered(
    found: ProfileSet,
    *,
    newest: int,
    known_sha256: str | None,
    served: Served | None,
    source: str,
) -> ProfileSet:
    """The set of a store file under the number that it has here.

    Args:
      found: the file's set.
      newest: the highest number given before, 0 if none.
      known_sha256: hash of the content that had the file's number before; None if not known.
      served: what this server knows; None outside a server.
      source: the file's name, for messages.
    Raises: StoreFormatError if the number has been used for other content.
    """
    if found.version > newest:
        return found
    if known_sha256 not in (None, found.sha256):
        raise StoreFormatError(
            f"{source}: version is {found.version}, but that number has been used for other "
            f"content; raise it to {newest + 1} or more, or use 'prefmix weights apply'"
        )
    if found.version == newest:
        return found
    in_force = None if served is None else served.in_force
    if in_force is not None and (in_force.version, in_force.sha256) == (newest, found.sha256):
        return in_force  # equal content keeps its number, however the file came
    return replace(found, version=newest + 1)
