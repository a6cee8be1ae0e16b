"""Intervals and certificates against known truths; coverage in seeded simulations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prefmix.weights.engines.progress import Progress
from prefmix.weights.fit.score_table import ScoreTable
from prefmix.weights.fit.sequence_level import objective
from prefmix.weights.fit.sequence_level.certificate import debiased_kl_per_prompt, leads
from prefmix.weights.fit.sequence_level.mirror_descent import DescentSettings
from prefmix.weights.fit.sequence_level.objective import Floats, from_flat
from prefmix.weights.fit.settings import FitError, FitSettings
from prefmix.weights.fit.summary import summary
from prefmix.weights.fit.table_fit import fit_table
from prefmix.weights.fit.token_level.deployed import measure_deployed
from prefmix.weights.fit.token_level.on_policy import Measured
from prefmix.weights.intervals.means import above_zero, interval_of_largest, mean_intervals
from support.fit.toy_worlds import exact, toy_world, true_optimum

QUIET = Progress(quiet=True)


def covers(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


@pytest.mark.parametrize("num_means", [3, 5])
@pytest.mark.parametrize("offsets", ["equal", "apart"])
def test_the_interval_of_the_largest_mean_covers(num_means: int, offsets: str) -> None:
    """Percentiles of the bootstrapped maximum, shifted by its bias, cover .53 to .72 if equal."""
    rng = np.random.default_rng(0)
    truth_F = np.zeros(num_means) if offsets == "equal" else 0.1 * np.arange(num_means)
    root = rng.normal(size=(num_means, num_means))
    hits = []
    for seed in range(400):
        values_PF = truth_F + rng.exponential(size=(60, num_means)) @ root - root.sum(axis=0)
        hits.append(covers(interval_of_largest(values_PF, seed=seed)[1], truth_F.max()))
    assert 0.93 <= np.mean(hits) <= 0.99


@pytest.mark.parametrize("num_policies", [3, 5])
@pytest.mark.parametrize("is_best", [True, False])
def test_the_gap_of_a_served_mixture_is_covered(num_policies: int, is_best: bool) -> None:
    """One token a response, so that mixtures of tokens and of sequences are the same."""
    worlds = [toy_world(num_policies, seed=seed, num_prompts=24) for seed in range(5)]
    best = [true_optimum(exact(world))[0] for world in worlds]
    hits = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        world, weights_K = worlds[seed % 5], best[seed % 5]
        if not is_best:
            weights_K = rng.dirichlet(np.full(num_policies, 3.0))
        truth_K = objective.kl_per_prompt(exact(world), weights_K).mean(axis=0)
        found = measure_deployed(
            one_token(world, weights_K, rng, prompts=64, each=4),
            weights_K,
            names=tuple(map(str, range(num_policies))),
            min_weight=0.0,
            mean_tokens=1.0,
        )
        assert found.fall is None
        hits.append(covers(found.gap_interval, float(truth_K.max() - weights_K @ truth_K)))
    assert np.mean(hits) >= 0.93


def one_token(
    world: Floats, weights_K: Floats, rng: np.random.Generator, *, prompts: int, each: int
) -> Measured:
    """Responses of one token to prompts that are drawn from the world's."""
    chosen_N = np.repeat(rng.integers(len(world), size=prompts), each)
    _, probability_PY = objective.tilt(exact(world), weights_K)
    log_mix_PY = np.log(probability_PY)
    noise = rng.gumbel(size=(len(chosen_N), world.shape[1]))
    token_N = (log_mix_PY[chosen_N] + noise).argmax(axis=1)
    kl_PK = np.einsum("py,pyk->pk", probability_PY, log_mix_PY[:, :, None] - world)
    return Measured(
        prompt_of_N=np.repeat(np.arange(prompts), each),
        logprob_N=log_mix_PY[chosen_N, token_N],
        policy_logprobs_NK=world[chosen_N, token_N],
        kl_NK=kl_PK[chosen_N],
        entropy_N=-(probability_PY * log_mix_PY).sum(axis=1)[chosen_N],
    )


def sampled(world: Floats, *, prompts: int, each: int, seed: int) -> ScoreTable:
    """Responses under the policies' geometric mean."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(world), size=prompts)
    _, probability_PY = objective.tilt(exact(world), np.full(world.shape[2], 1 / world.shape[2]))
    drawn = [rng.choice(world.shape[1], size=each, p=probability_PY[prompt]) for prompt in chosen]
    prompt_of_N = np.repeat(np.arange(prompts), each)
    rows = (np.repeat(chosen, each), np.concatenate(drawn))
    return ScoreTable(
        names=tuple(f"p{k}" for k in range(world.shape[2])),
        prompt_ids_N=prompt_of_N,
        num_tokens_N=np.ones(prompts * each, dtype=np.int64),
        scores_NK=world[rows],
        proposal_N=np.log(probability_PY[rows]),
    )


def test_a_fit_claims_no_more_than_it_knows_of_its_weights_and_gap() -> None:
    """The in-sample gap is 0 by construction, and the spread of seeds is not the weights' error."""
    descent = DescentSettings(num_steps=120, batch_prompts=64)  # whole batches
    settings = FitSettings(num_restarts=2, descent=descent)
    worlds = [toy_world(3, seed=seed, num_prompts=24) for seed in range(4)]
    best = [true_optimum(exact(world))[0] for world in worlds]
    weights, gaps, moved = [], [], []
    for seed in range(40):
        world, best_K = worlds[seed % 4], best[seed % 4]
        table = sampled(world, prompts=64, each=16, seed=seed)
        result = fit_table(table, settings, progress=QUIET)
        found = result.certificate
        assert found is not None
        assert found.weight_error is not None
        for name, truth in zip(result.names, best_K, strict=True):
            half = 1.96 * found.weight_error[name]
            weights.append(
                covers((result.weights[name] - half, result.weights[name] + half), truth)
            )
        moved.append(np.abs(result.weights_K - best_K).max() > 5 * found.seed_spread)
        truth_K = objective.kl_per_prompt(exact(world), result.weights_K).mean(axis=0)
        gaps.append(covers(found.gap_interval, float(truth_K.max() - result.weights_K @ truth_K)))
    assert 0.9 <= np.mean(weights) <= 0.99
    assert np.mean(gaps) >= 0.9
    assert np.mean(moved) > 0.5


def test_halves_take_the_first_part_of_the_bias_out() -> None:
    world = toy_world(3, seed=1)
    weights_K = np.full(3, 1 / 3)
    truth_K = objective.kl_per_prompt(exact(world), weights_K).mean(axis=0)
    rng = np.random.default_rng(0)
    flat = np.full(world.shape[1], 1 / world.shape[1])
    drawn_PJ = rng.choice(world.shape[1], size=(9_000, 8), p=flat)
    prompt_P1 = np.arange(9_000)[:, None] % len(world)
    ratios = world[prompt_P1, drawn_PJ] + np.log(world.shape[1])
    responses = from_flat(ratios.reshape(-1, 3), np.repeat(np.arange(9_000), 8))
    plain_K = objective.kl_per_prompt(responses, weights_K).mean(axis=0)
    better_K = debiased_kl_per_prompt(responses, weights_K).mean(axis=0)
    assert np.abs(plain_K - truth_K).max() > 0.03
    assert np.abs(better_K - truth_K).max() < 0.5 * np.abs(plain_K - truth_K).max()


def test_halves_of_ragged_prompts_hold_every_response_once() -> None:
    rng = np.random.default_rng(0)
    counts = (2, 3, 7)
    prompt_of_N = np.repeat(np.arange(3), counts)
    responses = from_flat(rng.normal(size=(12, 2)), prompt_of_N)
    halves = responses.halves()
    assert [half.num_responses_P.tolist() for half in halves] == [[1, 1, 3], [1, 2, 4]]
    for prompt in range(3):
        parts = [h.log_ratios_PJK[prompt, : h.num_responses_P[prompt]] for h in halves]
        whole = responses.log_ratios_PJK[prompt, : counts[prompt]]
        assert (np.concatenate(parts) == whole).all()


def test_one_prompt_gives_points_and_certain_means_stay() -> None:
    assert mean_intervals(np.array([[1.0, 2.0]])) == [(1.0, 1.0), (2.0, 2.0)]
    assert interval_of_largest(np.array([[1.0, 2.0]])) == (2.0, (2.0, 2.0))
    assert interval_of_largest(np.full((9, 2), 0.5)) == (0.5, (0.5, 0.5))
    assert above_zero((-0.5, (-1.0, 0.25))) == (0.0, (0.0, 0.25))
    lead_PK = leads(np.array([[1.0, 3.0]]), np.array([0.5, 0.5]))
    assert lead_PK.tolist() == [[-1.0, 1.0]]


def rewards(shift: Floats) -> ScoreTable:
    rng = np.random.default_rng(0)
    return ScoreTable(
        names=("a", "b", "c"),
        prompt_ids_N=np.repeat(np.arange(40), 16),
        num_tokens_N=np.full(640, 5),
        scores_NK=rng.normal(size=(640, 3)) * (1.0, 0.7, 0.5) + shift,
        proposal_N=None,
    )


def test_a_constant_added_to_a_reward_changes_nothing() -> None:
    settings = FitSettings(num_restarts=2, descent=DescentSettings(num_steps=200))
    plain = fit_table(rewards(np.zeros(3)), settings, beta=0.5, progress=QUIET)
    moved = fit_table(rewards(np.array([2.0, 0.0, -7.0])), settings, beta=0.5, progress=QUIET)
    assert moved.weights_K == pytest.approx(plain.weights_K, abs=1e-9)
    assert plain.weights_K.min() > 0.05
    assert plain.certificate is not None
    assert moved.certificate is not None
    assert moved.certificate.kl == pytest.approx(plain.certificate.kl, abs=1e-9)


def test_a_reward_with_one_response_a_prompt_is_refused() -> None:
    table = replace(rewards(np.zeros(3)), prompt_ids_N=np.arange(640))
    with pytest.raises(FitError, match="single response"):
        fit_table(table, FitSettings(), beta=0.5, progress=QUIET)


@pytest.mark.parametrize("form", ["rewards", "policies"])
def test_given_importances_are_never_called_unconverged(form: str) -> None:
    world = toy_world(3, seed=2)
    table = (
        rewards(np.zeros(3)) if form == "rewards" else sampled(world, prompts=40, each=8, seed=0)
    )
    given = dict(zip(table.names, (0.9, 0.05, 0.05), strict=True))
    beta = 0.5 if form == "rewards" else None
    result = fit_table(table, FitSettings(importances=given), beta=beta, progress=QUIET)
    assert result.verdict == "the importances were given, nothing was fitted"
    assert result.certificate is not None
    assert result.certificate.gap_interval[0] > 0
    text = summary(result)
    assert "not converged" not in text
    assert "spread" not in text
    assert "±" not in text
