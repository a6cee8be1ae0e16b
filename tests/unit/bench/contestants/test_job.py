"""The contestants' jobs: weights, prompts and lengths."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from prefmix.bench.contestants.job import Job, Weights, make_job, spread_lengths


def job(**changes: Any) -> Job:
    settings: dict[str, Any] = {
        "batch": 8,
        "num_policies": 3,
        "prompt_tokens": 5,
        "tokens": 16,
        "seed": 0,
    }
    return make_job(**{**settings, **changes})


@pytest.mark.parametrize(("kind", "vectors"), [("same", 1), ("different", 8)])
def test_weights_sum_to_one_and_leave_no_policy_out(kind: str, vectors: int) -> None:
    rows = job(weights=kind).weights
    assert len(rows) == 8
    for weights_K in rows:
        assert len(weights_K) == 3
        assert sum(weights_K) == pytest.approx(1)
        assert min(weights_K) > 0
    assert len({tuple(weights_K) for weights_K in rows}) == vectors


def test_one_hot_weights_take_turns_or_are_all_the_same() -> None:
    turns = [list(weights_K).index(1) for weights_K in job(weights="one policy each").weights]
    assert turns == [0, 1, 2, 0, 1, 2, 0, 1]
    assert job(weights="one policy").weights == [[1, 0, 0]] * 8


def test_weights_do_not_change_what_is_asked() -> None:
    """Otherwise a comparison of weights would be one of prompts."""
    kinds = [job(weights=kind) for kind in get_args(Weights)]
    assert all(
        (each.prompts, each.lengths) == (kinds[0].prompts, kinds[0].lengths) for each in kinds
    )


def test_two_seeds_share_no_prefix() -> None:
    firsts = [prompt[:2] for seed in (0, 1) for prompt in job(seed=seed).prompts]
    assert len({tuple(first) for first in firsts}) == 16


@pytest.mark.parametrize("batch", [1, 2, 3, 16, 64])
def test_spread_lengths_keep_the_mean(batch: int) -> None:
    lengths = spread_lengths(batch, 32)
    assert sum(lengths) / batch == pytest.approx(32, rel=0.02)
    assert batch == 1 or (min(lengths), max(lengths)) == (8, 56)
    assert sorted(job(batch=batch, tokens=32, vary_lengths=True).lengths) == lengths


def test_a_job_survives_json_and_can_be_cut_to_one_token() -> None:
    one = job(vary_lengths=True)
    assert Job.from_dict(one.to_dict()) == one
    assert one.num_tokens == sum(one.lengths)
    assert one.only_first_token().num_tokens == 8
    assert one.only_first_token().prompts == one.prompts
    alone = one.split()
    assert [job.lengths[0] for job in alone] == list(one.lengths)
    assert [job.prompts[0] for job in alone] == list(one.prompts)


def test_heads_come_before_prompts_and_the_longest_is_the_last_policys() -> None:
    job = make_job(batch=2, num_policies=3, prompt_tokens=5, tokens=4, seed=0)
    prompted = job.with_heads(20, seed=1)
    assert prompted.prompts == job.prompts
    assert prompted.heads is not None
    assert [[len(head) for head in heads] for heads in prompted.heads] == [[6, 13, 20]] * 2
    assert prompted.heads[0][2] != prompted.heads[1][2], "requests share no prefix"
    together = prompted.only_first_token().with_longest_head()
    assert together.heads is None
    assert together.lengths == [1, 1]
    pairs = zip(prompted.heads, job.prompts, strict=True)
    assert together.prompts == [[*heads[2], *prompt] for heads, prompt in pairs]
    assert Job.from_dict(prompted.to_dict()) == prompted
