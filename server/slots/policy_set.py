"""The policies in force: their names, and the engine's members that the names stand for.

The engine knows members by their position, and some of them are slots, whose adapters come and go.
Clients know names. A request keeps the set that it was admitted with, so that its weights mean the
same policies to its last token; a slot that a request uses is given to no other adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prefmix.mixing.spec import MixtureSpec
from prefmix.weights.store.added import AddedPolicies, with_added


def configured(engine: MixtureSpec) -> MixtureSpec:
    """The mixture of the configuration: an engine's without its slots."""
    return replace(engine, adapter_slots=0, max_adapter_rank=0)


@dataclass(frozen=True, kw_only=True)
class PolicySet:
    """The policies that requests may name; never changed once built.

    Shapes: M members that have names, E members of the engine.
    """

    spec: MixtureSpec
    """The mixture as clients see it."""
    engine: MixtureSpec
    """The mixture as the engine has it, with slots."""
    added: AddedPolicies = field(default_factory=dict)
    """The policies that are not the configuration's."""
    slots: Mapping[str, int] = field(default_factory=dict)
    """The slot of each added policy."""
    places: tuple[int, ...] = ()
    """The engine's member for each of the M members."""

    @classmethod
    def of(
        cls,
        engine: MixtureSpec,
        added: AddedPolicies | None = None,
        slots: Mapping[str, int] | None = None,
    ) -> PolicySet:
        """Builds a set.

        Args:
          slots: the slot of each added policy, all different.
        Raises: SpecError for added policies that this mixture cannot have.
        """
        added, slots = added or {}, slots or {}
        assert added.keys() == slots.keys(), "each added policy is in a slot"
        own = configured(engine)
        spec = with_added(own, added)
        place = {name: index for index, name in enumerate(own.member_names)}
        place |= {name: engine.slot_members[slot] for name, slot in slots.items()}
        places = tuple(place[name] for name in spec.member_names)
        return cls(spec=spec, engine=engine, added=added, slots=slots, places=places)

    def placed(self, weights_M: Sequence[float]) -> tuple[float, ...]:
        """The weights of the engine's E members; 0 for those without a name."""
        placed = [0.0] * self.engine.num_members
        for place, weight in zip(self.places, weights_M, strict=True):
            placed[place] = weight
        return tuple(placed)

    def slots_of(self, weights_M: Sequence[float]) -> frozenset[int]:
        """The slots of the policies with weight."""
        named = dict(zip(self.spec.member_names, weights_M, strict=True))
        return frozenset(slot for name, slot in self.slots.items() if named[name] != 0)

    def figures(self, rows: Sequence[Sequence[float]]) -> list[list[float]]:
        """Rows of 3 + 3 M figures from the engine's rows of 3 + 3 E
        (prefmix.mixing.batch.statistics)."""
        width = self.engine.num_members
        columns = [3 + part * width + place for part in range(3) for place in self.places]
        return [[*row[:3], *(row[column] for column in columns)] for row in rows]

    def engine_names(self) -> tuple[str | None, ...]:
        """The name of each of the engine's members; None for one that has none."""
        named = dict(zip(self.places, self.spec.member_names, strict=True))
        return tuple(named.get(member) for member in range(self.engine.num_members))


class CurrentPolicies:
    """Holds the set in force, and counts the requests that use a slot, in one API process."""

    def __init__(self, policies: PolicySet) -> None:
        self._current = policies
        self._users: Counter[int] = Counter()

    @property
    def current(self) -> PolicySet:
        """The set in force now; read once per request, with the profiles."""
        return self._current

    def swap(self, policies: PolicySet) -> None:
        """Puts another set in force: one assignment, atomic for every reader."""
        self._current = policies

    def name_of(self, member: str) -> str:
        """The name for clients of a member that has a name of the engine's."""
        current = self._current
        names = dict(zip(current.engine.member_names, current.engine_names(), strict=True))
        return names.get(member) or member

    def use(self, slots: frozenset[int]) -> Callable[[], None]:
        """Notes that a request uses slots, until what is returned is called."""
        self._users.update(slots)

        def end() -> None:
            self._users.subtract(slots)

        return end

    def num_users(self, slot: int) -> int:
        """Number of requests of this process that use a slot."""
        return self._users[slot]
