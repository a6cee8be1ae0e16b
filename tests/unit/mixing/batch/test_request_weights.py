"""A request's weights, and the rows of a step's tokens."""

from __future__ import annotations

import torch

from prefmix.mixing import wire
from prefmix.mixing.batch.request_weights import rows_of_tokens, weights_of_request
from prefmix.mixing.spec import MixtureSpec, Policy

SPEC = MixtureSpec(policies=tuple(Policy(name=name, model=name) for name in "abc"))


def test_bad_vectors_become_the_default_and_never_raise() -> None:
    for bad in ("x", [1], [1, 1, 1], [float("nan")] * 3, {"a": 1}, [None] * 3, [[1], 2, 3]):
        assert weights_of_request({wire.WEIGHTS_KEY: bad}, SPEC) == SPEC.uniform_weights
    assert weights_of_request(None, SPEC) == SPEC.uniform_weights


def test_tokens_find_their_rows_and_padding_gets_the_last() -> None:
    query_start_loc = torch.tensor([0, 3, 4, 4, 6], dtype=torch.int32)
    assert rows_of_tokens(query_start_loc, 8).tolist() == [0, 0, 0, 1, 3, 3, 3, 3]
