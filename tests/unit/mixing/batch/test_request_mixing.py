"""A request's coefficients, and the rows of a step's tokens."""

from __future__ import annotations

import torch

from prefmix.mixing import wire
from prefmix.mixing.batch.request_mixing import RequestMixing, rows_of_tokens
from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.ways_to_mix import MIXINGS

SPEC = MixtureSpec(policies=tuple(Policy(name=name, model=name) for name in "abc"))


def test_bad_vectors_become_the_default_and_never_raise() -> None:
    for bad in ("x", [1], [1, 1, 1], [float("nan")] * 3, {"a": 1}, [None] * 3, [[1], 2, 3]):
        request = RequestMixing.of_request({wire.WEIGHTS_KEY: bad}, SPEC)
        assert request.weights_M == SPEC.uniform_weights
    assert RequestMixing.of_request(None, SPEC).weights_M == SPEC.uniform_weights


def test_either_way_of_mixing_is_one_hot_where_the_other_has_the_weights() -> None:
    """Members, then adapters. The reference is the base, and no adapter."""
    base = Policy(name="base", model="base")
    trunk = MixtureSpec(policies=SPEC.policies[:2], reference=base, base="base")
    weights = (0.25, 0.5, 0.25)
    by_mixing = {
        mixing: RequestMixing.of_request(wire.to_extra_args(weights, mixing), trunk)
        for mixing in MIXINGS
    }
    assert by_mixing["logits"].coefficients(trunk) == (*weights, 1.0, 0.0)
    assert by_mixing["parameters"].coefficients(trunk) == (1.0, 0.0, 0.0, *weights[:2])


def test_a_slot_without_kv_cache_has_a_scale_and_no_hidden_states() -> None:
    base = Policy(name="base", model="base")
    spec = MixtureSpec(
        policies=SPEC.policies[:1],
        reference=base,
        base="base",
        adapter_slots=2,
        max_adapter_rank=4,
        slots_without_kv=1,
    )
    weights = (0.25, 0.25, 0.0, 0.5)
    averaged = RequestMixing.of_request(wire.to_extra_args(weights, "parameters"), spec)
    assert averaged.coefficients(spec) == (1.0, 0.0, 0.0, 0.25, 0.0, 0.5)
    lost = RequestMixing.of_request(wire.to_extra_args(weights, "logits"), spec)
    assert lost.weights_M == spec.uniform_weights  # as all that slips through
    mixed = RequestMixing.of_request(wire.to_extra_args((0.5, 0.25, 0.25, 0.0), "logits"), spec)
    assert mixed.coefficients(spec) == (0.5, 0.25, 0.25, 1.0, 0.0, 0.0)


def test_full_checkpoints_and_unknown_words_mix_logits_and_never_raise() -> None:
    trunk = MixtureSpec(policies=SPEC.policies, base="base")
    for mixing, spec in (("parameters", SPEC), ("sum", trunk), (["x"], trunk), (7, trunk)):
        extra_args = {**wire.to_extra_args((0.5, 0.5, 0.0)), wire.MIXING_KEY: mixing}
        assert not RequestMixing.of_request(extra_args, spec).mixes_parameters
    assert RequestMixing.of_request(extra_args, SPEC).coefficients(SPEC) == (0.5, 0.5, 0.0)


def test_tokens_find_their_rows_and_padding_gets_the_last() -> None:
    query_start_loc = torch.tensor([0, 3, 4, 4, 6], dtype=torch.int32)
    assert rows_of_tokens(query_start_loc, 8).tolist() == [0, 0, 0, 1, 3, 3, 3, 3]
