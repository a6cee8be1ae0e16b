"""Names of cached blocks tell the contents of slots apart."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace

import pytest

from prefmix.mixing.batch.request_mixing import RequestMixing
from prefmix.mixing.spec import MixtureSpec, Policy

pytestmark = pytest.mark.usefixtures("vllm")

SPEC = MixtureSpec(
    policies=(Policy(name="a", model="org/a"),),
    base="org/base",
    adapter_slots=2,
    max_adapter_rank=8,
)


def salt(
    weights_M: tuple[float, ...],
    user_salt: str | None = None,
    *,
    generations: dict[int, int],
    mixes_parameters: bool = False,
) -> str | None:
    scheduler = importlib.import_module("prefmix.mixing.engine.scheduler")
    request = RequestMixing(weights_M=weights_M, mixes_parameters=mixes_parameters)
    found: str | None = scheduler.salt_for(SPEC, request, user_salt, generations)
    return found


def test_each_content_of_a_slot_has_names_of_its_own_whatever_the_user_sends() -> None:
    vectors = [(0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.2, 0.3, 0.5)]
    contents = [{}, {1: 1}, {1: 11}, {2: 1}, {1: 1, 2: 1}, {1: 1, 2: 11}, {1: 11, 2: 1}]
    users = [None, "x", "s1/", "s1.1/7/", "3/"]
    found: dict[str | None, tuple[object, ...]] = {}
    for vector, mixes, user, generations in itertools.product(
        vectors, (False, True), users, contents
    ):
        used = tuple(generations.get(slot, 0) for slot in (1, 2) if vector[slot])
        name = salt(vector, user, generations=generations, mixes_parameters=mixes)
        # Equal names, equal blocks: the same members with the same contents, for the same user.
        assert found.setdefault(name, (vector, mixes, user, used)) == (vector, mixes, user, used)
    assert None not in found


def test_all_that_have_a_cache_together_keep_plain_names() -> None:
    """Slots without KV cache fill no blocks where logits are mixed."""
    scheduler = importlib.import_module("prefmix.mixing.engine.scheduler")
    spec = replace(SPEC, slots_without_kv=2)
    request = RequestMixing(weights_M=(1.0, 0.0, 0.0))
    assert scheduler.salt_for(spec, request, None, {}) is None
    averaged = RequestMixing(weights_M=(0.5, 0.0, 0.5), mixes_parameters=True)
    names = {scheduler.salt_for(spec, averaged, None, {2: each}) for each in (0, 1, 2)}
    assert len(names) == 3


def test_a_request_without_slots_does_not_know_of_their_changes() -> None:
    for mixes in (False, True):
        names = {
            salt((1.0, 0.0, 0.0), generations=each, mixes_parameters=mixes)
            for each in ({}, {1: 1}, {1: 2, 2: 5})
        }
        assert len(names) == 1
