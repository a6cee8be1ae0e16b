"""One row of an evaluation: the weights that answer, and the way in which."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from prefmix.mixing.ways_to_mix import Mixing


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """One row: a name and the weights of the members; members without an entry have 0."""

    name: str
    weights: Mapping[str, float]
    mixing: Mixing = "logits"
    shares: Mapping[str, float] | None = None
    """Shares of the policies in a parameter average that is a member of its own; None if the row is
    none."""
    candidates: int = 1
    """Answers drawn for each that counts, of which one is picked (prefmix.mixing.candidates)."""
    of_grid: bool = False
    """True for a row of the grid between the others; charts show it without its name."""

    @property
    def is_mixture(self) -> bool:
        """True if more than one member has weight."""
        return len(self.taking_part) > 1

    @property
    def is_single(self) -> bool:
        """True if the row is one member as it was given, and no parameter average."""
        return not self.is_mixture and self.shares is None

    @property
    def taking_part(self) -> tuple[str, ...]:
        """Members with weight."""
        return tuple(name for name, weight in self.weights.items() if weight)

    @property
    def shown(self) -> Mapping[str, float]:
        """The weights of a mixture, or the shares of a parameter average."""
        return self.weights if self.shares is None else self.shares

    @property
    def averaged(self) -> Mapping[str, float] | None:
        """The weights at which parameters are averaged, in a member or by the engine; None if they
        are not."""
        return self.weights if self.mixing == "parameters" else self.shares


def simplex_grid(num_policies: int, parts: int) -> list[tuple[float, ...]]:
    """All weights in steps of 1 / parts under which at least two policies take part."""
    counts = itertools.product(range(parts + 1), repeat=num_policies)
    return [
        tuple(count / parts for count in row)
        for row in counts
        if sum(row) == parts and max(row) < parts
    ]
