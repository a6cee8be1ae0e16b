"""Rows whose answers are picked from candidates come nearer to the product of whole sequences."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.weights.engines.progress import Progress
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.evaluation import both_ways
from prefmix.weights.evaluation.evaluate import evaluate
from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.evaluation.rows import evaluation_rows
from prefmix.weights.evaluation.weighting import Weighting
from support.fit.toy_engine import LENGTH, NUM_TOKENS, ToyEngine

WEIGHTS = {"p0": 0.5, "p1": 0.3, "p2": 0.2}


def liked(toy: ToyEngine, prompt: int, tokens_NL: np.ndarray) -> np.ndarray:
    """log prod_k pi_k(answer)^w_k"""
    laws = log_softmax(toy.logits_MPST[:3, prompt], axis=-1)
    return sum(
        weight * toy._logprobs(law, tokens_NL)
        for weight, law in zip(WEIGHTS.values(), laws, strict=True)
    )


def measured(toy: ToyEngine, cache: Path, candidates: int) -> Evaluation:
    def judge(
        prompts: Sequence[Prompt], texts: Sequence[str], tokens: Sequence[Sequence[int]]
    ) -> list[float | None]:
        found = np.empty(len(tokens))
        prompt_of_N = np.array([int(prompt.id) for prompt in prompts])
        for prompt in np.unique(prompt_of_N):
            own_N = prompt_of_N == prompt
            found[own_N] = liked(toy, prompt, np.array(tokens)[own_N])
        return list(found)

    rows = [Weighting(name="p0", weights={"p0": 1.0}), Weighting(name="once", weights=WEIGHTS)]
    rows.append(Weighting(name="picked", weights=WEIGHTS, candidates=candidates))
    return evaluate(
        toy.prompts,
        rows,
        {"liked": judge},
        spec=toy.spec,
        engine=lambda: toy,
        content_hashes=dict.fromkeys(toy.spec.member_names, "hash"),
        cache=cache,
        num_responses=200,
        max_tokens=LENGTH,
        kl_members=toy.spec.policy_names,
        progress=Progress(quiet=True),
    )


def test_picked_answers_follow_whole_sequences(tmp_path: Path) -> None:
    toy = ToyEngine(seed=3, num_prompts=6)
    toy.logits_MPST *= 2.0
    sequences_NL = np.array(list(itertools.product(range(NUM_TOKENS), repeat=LENGTH)))
    truth = 0.0
    for prompt in range(6):
        liked_N = liked(toy, prompt, sequences_NL)
        truth += softmax(liked_N) @ liked_N / 6
    found = measured(toy, tmp_path, candidates=12)
    single, picked = found.rewards_RO[1:, 0]
    error = found.rewards_RPJO[2, :, :, 0].std(axis=1).mean() / np.sqrt(6 * 200)
    assert abs(single - truth) > 4 * error, "a world in which both ways agree shows nothing"
    assert abs(picked - truth) < abs(single - truth) / 2
    assert np.isnan(found.kl_RM[2]).all()
    assert not np.isnan(found.kl_RM[:2]).any()


def test_candidates_are_compared_with_single_draws(tmp_path: Path) -> None:
    found = measured(ToyEngine(seed=3, num_prompts=6), tmp_path, candidates=2)
    (pair,) = both_ways.candidate_pairs(found)
    assert (pair.first, pair.second) == (2, 1)
    value, low, high = pair.rewards[0]
    assert value == pytest.approx(found.rewards_RO[2, 0] - found.rewards_RO[1, 0])
    assert low < value < high
    assert both_ways.pairs(found) == []
    heading, line = both_ways.candidate_cells(found)
    assert len(heading) == len(line) == 4
    assert found.table().splitlines()[3].endswith("-")
    told = found.to_dict()["rows"]
    assert isinstance(told, list)
    assert (told[2]["kl"], told[2]["candidates"]) == ([None] * 3, 2)
    assert both_ways.to_dicts(found)["candidates"][0]["single_draws"] == "once"


def test_each_mixture_of_logits_has_a_row_with_candidates() -> None:
    policies = tuple(Policy(name=name, model=name) for name in ("p", "q"))
    spec = MixtureSpec(policies=policies, base="base")
    rows = evaluation_rows(
        spec, {"x": (0.2, 0.8)}, averages={}, grid=4, ways=("logits", "parameters"), candidates=8
    )
    named = [(row.name, row.mixing) for row in rows if row.candidates > 1]
    assert named == [("uniform, 8 candidates", "logits"), ("@x, 8 candidates", "logits")]
    assert {row.candidates for row in rows} == {1, 8}
