"""The policies in force: their names, and the engine's members that the names stand for.

The engine knows members by their position, and some of them are slots, whose adapters come and go.
Clients know names. A request keeps the set that it was admitted with, so that its weights mean the
same policies to its last token; a slot that a request uses is given to no other adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prefmix.mixing.spec import MixtureSpec
from prefmix.server.config.prompt_settings import PromptSettings
from prefmix.weights.store.added import AddedPolicies, with_added


def configured(engine: MixtureSpec) -> MixtureSpec:
    """The mixture of the configuration: an engine's without its slots."""
    return replace(engine, adapter_slots=0, slots_without_kv=0, max_adapter_rank=0)


@dataclass(frozen=True, kw_only=True)
class PolicySet:
    """The policies that requests may name, with their prompts; never changed once built.

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
    prompts: PromptSettings = field(default_factory=PromptSettings)
    """The prompts of the policies' own, those of added ones included."""

    @classmethod
    def of(
        cls,
        engine: MixtureSpec,
        added: AddedPolicies | None = None,
        slots: Mapping[str, int] | None = None,
        *,
        prompts: PromptSettings | None = None,
    ) -> PolicySet:
        """Builds a set.

        Args:
          slots: the slot of each added policy, all different.
          prompts: those of the configuration.
        Raises: SpecError for added policies that this mixture cannot have.
        """
        added, slots = added or {}, slots or {}
        assert added.keys() == slots.keys(), "each added policy is in a slot"
        own = configured(engine)
        spec = with_added(own, added)
        place = {name: index for index, name in enumerate(own.member_names)}
        place |= {name: engine.slot_members[slot] for name, slot in slots.items()}
        places = tuple(place[name] for name in spec.member_names)
        prompts = prompts or PromptSettings()
        texts = {name: each.system for name, each in added.items() if each.system is not None}
        prompts = replace(prompts, systems={**prompts.systems, **texts})
        return cls(
            spec=spec, engine=engine, added=added, slots=slots, places=places, prompts=prompts
        )

    def with_added(self, added: AddedPolicies, slots: Mapping[str, int]) -> PolicySet:
        """The set of the same configuration with other added policies.

        Raises: as `of`.
        """
        texts = self.prompts.systems.items()
        own = {name: text for name, text in texts if name not in self.added}
        prompts = replace(self.prompts, systems=own)
        return PolicySet.of(self.engine, added, slots, prompts=prompts)

    def placed(self, weights_M: Sequence[float]) -> tuple[float, ...]:
        """The weights of the engine's E members; 0 for those without a name."""
        placed = [0.0] * self.engine.num_members
        for place, weight in zip(self.places, weights_M, strict=True):
            placed[place] = weight
        return tuple(placed)

    def placed_heads(
        self, heads_M: Sequence[list[int] | None] | None
    ) -> tuple[list[int] | None, ...] | None:
        """The beginnings of the engine's E prompts; None for members without a name."""
        if heads_M is None:
            return None
        placed: list[list[int] | None] = [None] * self.engine.num_members
        for place, head in zip(self.places, heads_M, strict=True):
            placed[place] = head
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
        self._held: set[int] = set()
        self._empty: set[int] = set()
        self._last_names: dict[int, str] = {}

    @property
    def current(self) -> PolicySet:
        """The set in force now; read once per request, with the profiles."""
        return self._current

    def swap(self, policies: PolicySet, *, held: Collection[int] | None = None) -> None:
        """Puts another set in force: one assignment, atomic for every reader.

        Args: held: the slots that whoever makes the change holds after it; None for this process.
        """
        kept = self.held_after(policies)
        self._last_names |= {slot: name for name, slot in self._current.slots.items()}
        self._current = policies
        self._held = set(kept if held is None else kept.intersection(held))
        self._empty &= self._held

    def held_after(self, policies: PolicySet) -> frozenset[int]:
        """The slots that stay held with another set: those that have the same policy in it."""
        before, after = self._current, policies
        return frozenset(
            slot
            for name, slot in after.slots.items()
            if slot in self._held
            and before.slots.get(name) == slot
            and before.added[name] == after.added[name]
        )

    def name_of(self, member: str) -> str:
        """The name for clients of a member that has a name of the engine's.

        A slot without a policy has the name of its last one, whose requests may be under way.
        """
        current = self._current
        engine = current.engine
        last = {engine.slot_members[slot]: name for slot, name in self._last_names.items()}
        every = enumerate(zip(engine.member_names, current.engine_names(), strict=True))
        names = {own: named or last.get(number) for number, (own, named) in every}
        return names.get(member) or member

    def hold(self, slot: int, *, is_empty: bool = False) -> None:
        """Notes that no new request may use a slot.

        Args:
          is_empty: true if its policy's adapter is not in it; false if that is to be replaced.
        """
        self._held.add(slot)
        (self._empty.add if is_empty else self._empty.discard)(slot)

    def release(self, slot: int) -> None:
        """Ends `hold`: the slot has its policy's content."""
        self._held.discard(slot)
        self._empty.discard(slot)

    @property
    def all_slots(self) -> frozenset[int]:
        """The slots that policies in force have."""
        return frozenset(self._current.slots.values())

    @property
    def held(self) -> frozenset[int]:
        """The slots that no new request may use."""
        return frozenset(self._held)

    @property
    def held_names(self) -> frozenset[str]:
        """The policies that no new request may use."""
        named = self._current.slots.items()
        return frozenset(name for name, slot in named if slot in self._held)

    def held_name(self, slots: frozenset[int]) -> str | None:
        """A policy in one of these slots that no new request may use; None if there is none."""
        held = slots & self._held
        return next((name for name, slot in self._current.slots.items() if slot in held), None)

    def is_empty(self, name: str) -> bool:
        """True if the slot of a policy is held because it lacks the policy's adapter."""
        return self._current.slots[name] in self._empty

    def use(self, slots: frozenset[int]) -> Callable[[], None]:
        """Notes that a request uses slots, until what is returned is called."""
        self._users.update(slots)

        def end() -> None:
            self._users.subtract(slots)

        return end

    def num_users(self, slot: int) -> int:
        """Number of requests of this process that use a slot."""
        return self._users[slot]
