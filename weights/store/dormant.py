"""Dormant profiles: those that give weight to a policy which the server has not at the moment.

They are kept with the others, under the names of their policies, and serve no request until all of
these are there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefmix.mixing.ways_to_mix import Mixing


@dataclass(frozen=True, kw_only=True, slots=True)
class DormantProfile:
    """A profile by its policies' names."""

    weights: Mapping[str, float]
    """The weights that are not 0; they sum to 1."""
    mixing: Mixing | None = None
    """Its way to mix; None leaves it to the server."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """The origin of the weights, JSON-ready."""

    def absent(self, members: Collection[str]) -> list[str]:
        """The policies that it waits for, where a server has these members."""
        return [name for name in self.weights if name not in members]

    def document(self) -> dict[str, Any]:
        """The profile as a JSON-ready object, in the form of any profile."""
        own = {"mixing": self.mixing, "provenance": dict(self.provenance)}
        return {"weights": dict(self.weights), **{key: own[key] for key in own if own[key]}}
