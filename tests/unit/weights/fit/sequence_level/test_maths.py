"""Objective and descent against worlds small enough to enumerate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp

from prefmix.weights.fit.sequence_level import objective
from prefmix.weights.fit.sequence_level.certificate import leads
from prefmix.weights.fit.sequence_level.mirror_descent import (
    DescentSettings,
    curvature,
    descend,
    restarts,
    with_floor,
)
from prefmix.weights.fit.sequence_level.objective import Floats, Responses, from_flat
from prefmix.weights.intervals.means import interval_of_largest
from support.fit.toy_worlds import between_two, exact, toy_world, true_optimum


def sampled(
    log_policies_PYK: Floats,
    *,
    num_responses: int,
    copies: int,
    seed: int,
    temperature: float = 1.0,
) -> Responses:
    """Responses drawn from a proposal, each prompt `copies` times."""
    rng = np.random.default_rng(seed)
    log_proposal_PY = log_policies_PYK.mean(axis=2) / temperature
    log_proposal_PY -= logsumexp(log_proposal_PY, axis=1, keepdims=True)
    ratios, prompts = [], []
    for copy in range(copies):
        for index, log_proposal_Y in enumerate(log_proposal_PY):
            drawn = rng.choice(len(log_proposal_Y), size=num_responses, p=np.exp(log_proposal_Y))
            ratios.append(log_policies_PYK[index, drawn] - log_proposal_Y[drawn, None])
            prompts += [copy * len(log_proposal_PY) + index] * num_responses
    return from_flat(np.concatenate(ratios), np.asarray(prompts))


FULL = DescentSettings(num_steps=3000, batch_prompts=10**6, step_size=1.0, schedule="constant")


@pytest.mark.parametrize("num_policies", [2, 3, 4, 5, 6])
def test_enumerated_worlds_are_solved(num_policies: int) -> None:
    responses = exact(toy_world(num_policies, seed=num_policies))
    weights_K, optimum = true_optimum(responses)
    run = descend(responses, FULL)
    assert np.abs(run.weights_K - weights_K).max() < 0.005
    assert objective.value(responses, run.weights_K) - optimum < 1e-4


@pytest.mark.parametrize("num_policies", [2, 3, 4, 5, 6])
def test_64_sampled_responses_a_prompt_are_enough(num_policies: int) -> None:
    world = toy_world(num_policies, seed=10 + num_policies)
    truth_K, optimum = true_optimum(exact(world))
    responses = sampled(world, num_responses=64, copies=300, seed=0)
    run = descend(responses, DescentSettings(num_steps=2000, batch_prompts=128))
    assert np.abs(run.weights_K - truth_K).max() < 0.02
    assert objective.value(exact(world), run.weights_K) - optimum < 1e-3


def test_gradient_is_the_derivative() -> None:
    responses = sampled(toy_world(4, seed=1), num_responses=5, copies=3, seed=2)
    weights_K = np.array([0.1, 0.2, 0.3, 0.4])
    for policy in range(4):
        step = 1e-6 * np.eye(4)[policy]
        up, down = (objective.value(responses, weights_K + sign * step) for sign in (1, -1))
        slope = objective.gradient(responses, weights_K)[policy]
        assert slope == pytest.approx((up - down) / 2e-6, abs=1e-7)
    per_prompt_PK = objective.gradient_per_prompt(responses, weights_K)
    assert objective.gradient(responses, weights_K) == pytest.approx(per_prompt_PK.mean(axis=0))


def test_objective_is_zero_at_vertices_and_negative_inside() -> None:
    """No vertex is therefore optimal for distinct normalised policies."""
    responses = exact(toy_world(3, seed=3))
    for vertex in np.eye(3):
        assert objective.value(responses, vertex) == pytest.approx(0, abs=1e-12)
    assert objective.value(responses, np.full(3, 1 / 3)) < -0.01


def test_in_reward_form_a_vertex_can_be_optimal() -> None:
    """One reward is below the others everywhere: maximising the minimum is maximising it."""
    rng = np.random.default_rng(0)
    low = rng.normal(size=(1, 50))
    rewards = np.stack([low, low + 3, low + 4], axis=2)
    mass = np.full((1, 50), -np.log(50))
    responses = Responses(log_ratios_PJK=rewards, log_mass_PJ=mass)
    assert descend(responses, FULL).weights_K == pytest.approx([1, 0, 0], abs=1e-3)


def test_optimum_on_an_edge_is_found() -> None:
    """The third policy is nearly the mixture of the other two: it adds nothing."""
    responses = exact(between_two(seed=5))
    weights_K, optimum = true_optimum(responses)
    assert weights_K[2] == pytest.approx(0, abs=1e-4)
    run = descend(responses, FULL)
    assert run.weights_K[2] < 0.005
    assert objective.value(responses, run.weights_K) - optimum < 1e-3


def test_optimum_equalises_the_kls_of_active_policies() -> None:
    responses = exact(toy_world(4, seed=6))
    weights_K = descend(responses, FULL).weights_K
    kl_K = objective.kl_per_prompt(responses, weights_K).mean(axis=0)
    active = weights_K > 1e-3
    assert np.ptp(kl_K[active]) < 1e-3
    assert (kl_K[~active] <= kl_K[active].min() + 1e-3).all()
    assert -weights_K @ kl_K == pytest.approx(objective.value(responses, weights_K))


def test_kl_equals_the_enumerated_one() -> None:
    world = toy_world(3, seed=7, num_prompts=2)
    weights_K = np.array([0.2, 0.5, 0.3])
    log_mix = world @ weights_K
    log_mix -= logsumexp(log_mix, axis=1, keepdims=True)
    truth_PK = np.einsum("py,pyk->pk", np.exp(log_mix), log_mix[:, :, None] - world)
    assert objective.kl_per_prompt(exact(world), weights_K) == pytest.approx(truth_PK)


def test_proposal_does_not_move_the_optimum() -> None:
    world = toy_world(3, seed=8)
    answers = [
        true_optimum(sampled(world, num_responses=400, copies=20, seed=1, temperature=heat))[0]
        for heat in (0.7, 1.0, 3.0)
    ]
    for answer in answers[1:]:
        assert np.abs(answer - answers[0]).max() < 0.02


def test_few_responses_bias_the_fit_to_a_vertex() -> None:
    """With one response per prompt F is linear, which is the reason for the m-sweep."""
    world = toy_world(3, seed=9)
    responses = sampled(world, num_responses=64, copies=100, seed=0)
    truth_K, _ = true_optimum(exact(world))
    errors = [
        np.abs(true_optimum(responses.first(count))[0] - truth_K).max() for count in (1, 4, 64)
    ]
    assert errors[0] > 0.3 > errors[2]
    assert errors[0] > errors[1] > errors[2]


def test_one_response_a_prompt_runs_to_the_vertex_of_the_linear_objective() -> None:
    responses = sampled(toy_world(3, seed=9), num_responses=1, copies=30, seed=0)
    best = objective.gradient(responses, np.full(3, 1 / 3)).argmin()
    weights_K = descend(responses, DescentSettings(num_steps=2000, batch_prompts=10**6)).weights_K
    assert weights_K[best] > 0.95


def test_identical_policies_are_left_alone() -> None:
    world = toy_world(1, seed=0)
    responses = exact(np.repeat(world, 3, axis=2))
    run = descend(responses, FULL)
    assert run.weights_K == pytest.approx(np.full(3, 1 / 3))
    assert objective.kl_per_prompt(responses, run.weights_K) == pytest.approx(0, abs=1e-9)


def test_one_policy_gets_everything() -> None:
    assert descend(exact(toy_world(1, seed=0)), FULL).weights_K == pytest.approx([1.0])


def test_twenty_policies_equalise() -> None:
    responses = exact(toy_world(20, seed=11, outcomes=200))
    weights_K = descend(responses, FULL).weights_K
    kl_K = objective.kl_per_prompt(responses, weights_K).mean(axis=0)
    assert np.ptp(kl_K[weights_K > 1e-3]) < 5e-3


def test_steps_stay_on_the_simplex_and_descend_with_exact_gradients() -> None:
    responses = exact(toy_world(5, seed=12))
    run = descend(responses, DescentSettings(num_steps=300, batch_prompts=10, step_size=1.0))
    assert (run.path_TK >= 0).all()
    assert run.path_TK.sum(axis=1) == pytest.approx(1)
    values = [objective.value(responses, weights_K) for weights_K in run.path_TK]
    assert (np.diff(values) < 1e-12).all()


def test_policies_far_apart_neither_overflow_nor_leave_the_simplex() -> None:
    rng = np.random.default_rng(19)
    responses = from_flat(rng.normal(size=(40, 3)) * 1e6, np.repeat(np.arange(10), 4))
    path_TK = descend(responses, DescentSettings(num_steps=50, batch_prompts=5)).path_TK
    assert np.isfinite(path_TK).all()
    assert path_TK.sum(axis=1) == pytest.approx(1)


def mirror_step(weights_K: Floats, gradient_K: Floats, *, step_size: float) -> Floats:
    """The entropic mirror step of the textbooks."""
    new_weights_K = weights_K * np.exp(-step_size * (gradient_K - gradient_K.min()))
    return new_weights_K / new_weights_K.sum()


def test_floor_is_kept_and_impossible_floors_are_refused() -> None:
    responses = exact(toy_world(3, seed=13))
    run = descend(responses, DescentSettings(batch_prompts=10, min_weight=0.3))
    assert (run.path_TK >= 0.3 - 1e-12).all()
    with pytest.raises(ValueError, match=r"can be at most 0\.3333"):
        with_floor(np.full(3, 1 / 3), 0.4)


@pytest.mark.parametrize("min_weight", [0.0, 0.15, 0.25, 0.32, 1 / 3])
def test_the_gap_is_zero_at_the_optimum_above_a_floor(min_weight: float) -> None:
    """The optimum comes from another method; elsewhere the gap bounds the possible gain."""
    responses = exact(between_two(seed=5))
    best_K, optimum = true_optimum(responses, min_weight=min_weight)
    assert best_K[2] == pytest.approx(min_weight, abs=1e-4)
    weights_K = descend(responses, replace(FULL, min_weight=min_weight)).weights_K
    assert np.abs(weights_K - best_K).max() < 0.005

    def gap(weights_K: Floats) -> float:
        kl_PK = objective.kl_per_prompt(responses, weights_K)
        return interval_of_largest(leads(kl_PK, weights_K, min_weight=min_weight))[0]

    assert gap(best_K) == pytest.approx(0, abs=1e-4)
    rng = np.random.default_rng(0)
    for point_K in with_floor(rng.dirichlet(np.ones(3), size=20), min_weight):
        assert gap(point_K) >= objective.value(responses, point_K) - optimum - 1e-9
    # Those above the floor are equally far, the one on it is nearer.
    kl_K = objective.kl_per_prompt(responses, best_K).mean(axis=0)
    if min_weight < 1 / 3:
        assert kl_K[0] == pytest.approx(kl_K[1], abs=1e-3)
        assert kl_K[2] < kl_K[0] - 0.01


def test_restarts_agree() -> None:
    responses = sampled(toy_world(3, seed=14), num_responses=32, copies=60, seed=3)
    settings = DescentSettings(num_steps=1500, batch_prompts=32)
    ends = np.stack([run.weights_K for run in restarts(responses, settings, num_restarts=4)])
    assert np.ptp(ends, axis=0).max() < 0.03


def test_same_seed_same_answer() -> None:
    responses = sampled(toy_world(3, seed=15), num_responses=8, copies=30, seed=4)
    settings = DescentSettings(num_steps=50, batch_prompts=16)
    assert (descend(responses, settings).path_TK == descend(responses, settings).path_TK).all()


@pytest.mark.parametrize("offset", [0.0, 2000.0])
@pytest.mark.parametrize("min_weight", [0.0, 0.1])
def test_every_step_is_a_mirror_step_on_the_batch(offset: float, min_weight: float) -> None:
    """The path is that of plain mirror steps, also for ragged prompts and scores beyond exp()."""
    rng = np.random.default_rng(17)
    prompt_of_N = np.repeat(np.arange(7), [3, 1, 4, 4, 2, 4, 3])
    responses = from_flat(rng.normal(size=(len(prompt_of_N), 3)) + offset, prompt_of_N)
    settings = DescentSettings(
        num_steps=40, batch_prompts=3, step_size=1.0, min_weight=min_weight, seed=5
    )
    path_TK = descend(responses, settings).path_TK
    slope = 1 - 3 * min_weight
    unit = curvature(responses, np.full(3, 1 / 3))
    shuffle = np.random.default_rng(5)
    for step in range(40):
        if step % 2 == 0:
            order = shuffle.permutation(7)
        batch = responses.take(order[3 * (step % 2) :][:3])
        gradient_K = objective.gradient(batch, path_TK[step])
        size = 1 / (slope * unit * np.sqrt(step + 1))
        free_K = mirror_step((path_TK[step] - min_weight) / slope, gradient_K, step_size=size)
        assert path_TK[step + 1] == pytest.approx(min_weight + slope * free_K, abs=1e-10)


@pytest.mark.parametrize(("copies", "error"), [(100, 1e-9), (5000, 0.1)])
def test_curvature_is_the_largest_centred_variance(copies: int, error: float) -> None:
    responses = sampled(toy_world(3, seed=18), num_responses=4, copies=copies, seed=0)
    weights_K = np.array([0.2, 0.3, 0.5])
    _, probability_PJ = objective.tilt(responses, weights_K)
    ratios_PJK = responses.log_ratios_PJK
    centred_PJK = ratios_PJK - ratios_PJK.mean(axis=2, keepdims=True)
    mean_PK = np.einsum("pj,pjk->pk", probability_PJ, centred_PJK)
    square_PK = np.einsum("pj,pjk->pk", probability_PJ, centred_PJK**2)
    truth_K = (square_PK - mean_PK**2).mean(axis=0)
    assert curvature(responses, weights_K) == pytest.approx(truth_K.max(), rel=error)


def test_grouping_keeps_every_response_of_ragged_prompts() -> None:
    rng = np.random.default_rng(0)
    prompt_of_N = np.array([2, 0, 1, 2, 2, 0])
    log_ratios_NK = rng.normal(size=(6, 2))
    responses = from_flat(log_ratios_NK, prompt_of_N)
    assert responses.num_responses_P.tolist() == [2, 1, 3]
    weights_K = np.array([0.3, 0.7])
    by_hand = [
        np.log(np.mean(np.exp(log_ratios_NK[prompt_of_N == prompt] @ weights_K)))
        for prompt in range(3)
    ]
    assert objective.value(responses, weights_K) == pytest.approx(np.mean(by_hand))


def test_effective_sample_size_lies_between_one_and_m() -> None:
    responses = sampled(toy_world(3, seed=16), num_responses=16, copies=4, seed=5)
    size_P = objective.effective_sample_size(responses, np.full(3, 1 / 3))
    assert size_P.min() >= 1
    assert size_P.max() <= 16 + 1e-9
    same = Responses(log_ratios_PJK=np.zeros((1, 16, 3)), log_mass_PJ=np.full((1, 16), -np.log(16)))
    assert objective.effective_sample_size(same, np.full(3, 1 / 3)) == pytest.approx([16])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"batch_prompts": 0}, "batch_prompts is 0"),
        ({"step_size": float("nan")}, "step_size is nan"),
        ({"schedule": "cosine"}, "allowed: sqrt, constant"),
        ({"min_weight": 1.0}, "min_weight is 1.0"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DescentSettings(**setting)  # type: ignore[arg-type]


def test_the_mean_of_all_iterates_begins_with_the_first_step() -> None:
    responses = exact(toy_world(3, seed=3))
    tail, whole = (
        descend(responses, DescentSettings(num_steps=40, averages=averages))
        for averages in ("tail", "all")
    )
    assert np.array_equal(tail.path_TK, whole.path_TK)
    assert tail.weights_K == pytest.approx(tail.path_TK[21:].mean(axis=0))
    assert whole.weights_K == pytest.approx(whole.path_TK[1:].mean(axis=0))
