"""Names of policies and the engine's members that they stand for."""

from __future__ import annotations

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.api.attribution import describe
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet
from prefmix.weights.store.added import AddedPolicy

BASE = Policy(name="base", model="org/base")
ENGINE = MixtureSpec(
    policies=(Policy(name="a", model="org/a"),),
    reference=BASE,
    base="org/base",
    adapter_slots=3,
    max_adapter_rank=8,
)
ADDED = {name: AddedPolicy(adapter=name, sha256="0" * 64) for name in ("new", "newer")}
SET = PolicySet.of(ENGINE, ADDED, {"new": 2, "newer": 0})


def test_a_weight_goes_to_the_slot_that_its_name_has() -> None:
    assert SET.spec.member_names == ("a", "new", "newer", "base")
    assert SET.placed((0.1, 0.2, 0.3, 0.4)) == (0.1, 0.4, 0.3, 0.0, 0.2)
    assert SET.engine_names() == ("a", "base", "newer", None, "new")
    assert PolicySet.of(ENGINE).placed((0.25, 0.75)) == (0.25, 0.75, 0.0, 0.0, 0.0)
    assert PolicySet.of(ENGINE).spec.member_names == ("a", "base")


def test_a_mixture_without_slots_is_as_the_engine_has_it() -> None:
    plain = MixtureSpec(policies=ENGINE.policies, reference=BASE, base="org/base")
    assert PolicySet.of(plain).spec == plain
    assert PolicySet.of(plain).placed((0.5, 0.5)) == (0.5, 0.5)


def test_figures_are_those_of_the_names() -> None:
    """A row of the engine has three figures, then three for each of its members."""
    row = [0.1, 0.2, 0.3, *(10.0 * part + member for part in (1, 2, 3) for member in range(5))]
    [own] = SET.figures([row])
    weights = dict(zip(SET.spec.member_names, (0.1, 0.2, 0.3, 0.4), strict=True))
    found = describe([own], weights, by_token=False)["policies"]
    kl = {name: each["mean_kl"] for name, each in found.items()}
    assert kl == {"a": 10.0, "base": 11.0, "newer": 12.0, "new": 14.0}
    assert {name: each["mean_logprob"] for name, each in found.items()}["new"] == 24.0


def test_a_slot_is_used_until_its_requests_have_ended() -> None:
    current = CurrentPolicies(SET)
    used = SET.slots_of((0.5, 0.5, 0.0, 0.0))
    assert used == {2}
    ends = [current.use(used), current.use(used), current.use(SET.slots_of((0, 0, 1, 0)))]
    assert [current.num_users(slot) for slot in range(3)] == [1, 0, 2]
    current.swap(PolicySet.of(ENGINE))
    assert current.num_users(2) == 2  # they keep the set that they were admitted with
    for end in ends:
        end()
    assert [current.num_users(slot) for slot in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("member", "name"),
    [("adapter-slot-2", "new"), ("a", "a"), ("adapter-slot-1", "adapter-slot-1")],
)
def test_a_failed_slot_is_called_by_its_policys_name(member: str, name: str) -> None:
    assert CurrentPolicies(SET).name_of(member) == name


def test_a_policy_that_has_gone_is_called_by_its_name_until_its_last_request_ends() -> None:
    current = CurrentPolicies(SET)
    current.swap(PolicySet.of(ENGINE))
    assert current.name_of("adapter-slot-2") == "new"
    current.swap(PolicySet.of(ENGINE, {"next": ADDED["new"]}, {"next": 2}))
    assert current.name_of("adapter-slot-2") == "next"
    assert (current.name_of("adapter-slot-0"), current.name_of("a")) == ("newer", "a")
