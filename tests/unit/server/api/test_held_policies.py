"""Requests that name a policy while another of its name comes into its slot."""

from __future__ import annotations

import dataclasses

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet
from prefmix.server.traffic.admission_control import OverloadedError
from prefmix.weights.store import edits
from prefmix.weights.store.added import AddedPolicy
from prefmix.weights.store.profiles import CurrentProfiles, build_profile_set
from support.text_requests import Body, mixture_state, text_request

ENGINE = MixtureSpec(
    policies=(Policy(name="a", model="org/a"),),
    base="org/base",
    adapter_slots=2,
    max_adapter_rank=8,
)


def test_they_are_told_to_come_again_and_all_others_are_served() -> None:
    new = {"new": AddedPolicy.of(adapter="new", sha256="0" * 64)}
    own = dataclasses.replace(ENGINE, adapter_slots=0, max_adapter_rank=0)
    profiles = edits.with_policy(
        build_profile_set({"even": {"a": 1}}, own), "new", new["new"], spec=own
    )
    policies = CurrentPolicies(PolicySet.of(ENGINE, new, {"new": 1}))
    state = dataclasses.replace(
        mixture_state(), policies=policies, profiles=CurrentProfiles(profiles)
    )

    async def send(message: object) -> None:
        raise AssertionError

    def admit(**weights: float) -> None:
        request, _ = text_request(state, send)
        request.admit(Body(weights=weights))  # type: ignore[arg-type]

    policies.hold(0)
    admit(new=1)
    policies.hold(1)
    with pytest.raises(OverloadedError, match="policy 'new' is being replaced") as held:
        admit(a=1, new=1)
    answer = held.value.response()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    admit(a=1, new=0)
    policies.hold(1, is_empty=True)
    with pytest.raises(OverloadedError, match="not served now, as its adapter could not") as held:
        admit(a=1, new=1)
    assert "puts the files back, brings another adapter or removes the policy" in str(held.value)
    assert "replaced by another" not in str(held.value)
    answer = held.value.response()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    policies.release(1)
    admit(new=1)
    policies.hold(1)
    policies.swap(policies.current)
    with pytest.raises(OverloadedError):
        admit(new=1)
    replaced = {"new": AddedPolicy.of(adapter="new", sha256="1" * 64)}
    policies.swap(policies.current.with_added(replaced, {"new": 1}))
    admit(new=1)
    assert policies.num_users(1) == 3
    policies.hold(1)
    assert not policies.is_empty("new"), "another adapter than the one that was missing"
