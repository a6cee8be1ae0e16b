"""Slots of a mixture: further members, without an adapter at first."""

from __future__ import annotations

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy, SpecError

POLICIES = (Policy(name="a", model="org/a"), Policy(name="plain", model="org/base"))
REFERENCE = Policy(name="reference", model="org/base")


def spec(**settings: object) -> MixtureSpec:
    given = {"adapter_slots": 2, "max_adapter_rank": 8, "base": "org/base", **settings}
    return MixtureSpec(policies=POLICIES, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("reference", [None, REFERENCE])
def test_slots_are_the_last_members_and_no_adapter_of_the_start(reference: Policy | None) -> None:
    mixture = spec(reference=reference)
    first = 2 + (reference is not None)
    assert list(mixture.slot_members) == [first, first + 1]
    assert mixture.num_members == len(mixture.members) == first + 2
    assert mixture.adapter_members == (0, first, first + 1)
    assert [each.name for each in mixture.adapters] == ["a"]
    assert mixture.uniform_weights == (0.5, 0.5) + (0.0,) * first
    assert len(set(mixture.member_names)) == first + 2


def test_slots_without_kv_cache_are_the_last_and_members_all_the_same() -> None:
    mixture = spec(slots_without_kv=1)
    assert (mixture.num_members, mixture.num_kv_members) == (4, 3)
    assert [mixture.has_kv(slot) for slot in range(2)] == [True, False]
    assert (mixture.adapter_members, len(mixture.uniform_weights)) == ((0, 2, 3), 4)
    assert spec(slots_without_kv=2).num_kv_members == 2
    assert spec().num_kv_members == spec().num_members


def test_slots_survive_the_way_into_the_engine() -> None:
    mixture = spec(slots_without_kv=1)
    assert MixtureSpec.from_dict(mixture.to_dict()) == mixture
    plain = MixtureSpec(policies=POLICIES, base="org/base")
    assert not plain.slot_members
    assert plain.adapter_members == (0,)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base": None}, "these policies are full checkpoints"),
        ({"max_adapter_rank": 0}, "give both above 0, or neither"),
        ({"adapter_slots": 0}, "give both above 0, or neither"),
        ({"adapter_slots": -1}, "adapter_slots is -1; expected a whole number, 0 or more"),
        ({"max_adapter_rank": 2.5}, "max_adapter_rank is 2.5; expected a whole number"),
        ({"adapter_slots": True}, "adapter_slots is "),
        ({"slots_without_kv": 3}, "slots_without_kv is 3, but there are 2 adapter_slots"),
        ({"slots_without_kv": -1}, "slots_without_kv is -1; expected a whole number"),
    ],
)
def test_impossible_slots_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        spec(**settings)
