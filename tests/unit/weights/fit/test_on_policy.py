"""The on-policy fit on worlds that can be enumerated, drawn without any error."""

from __future__ import annotations

import numpy as np
import pytest

from prefmix.weights.fit import objective
from prefmix.weights.fit.objective import Floats, Responses
from prefmix.weights.fit.on_policy import OnPolicyFit, covariance, newton_target
from support.fit.toy_worlds import between_two, exact, toy_world, true_optimum


def mixed(log_policies_PYK: Floats, weights_K: Floats) -> Responses:
    """All outcomes at the mixture's own probabilities, log ratios against the mixture."""
    log_z_P, probability_PY = objective.tilt(exact(log_policies_PYK), weights_K)
    log_mix_PY = log_policies_PYK @ weights_K - log_z_P[:, None]
    with np.errstate(divide="ignore"):
        log_mass_PY = np.log(probability_PY)
    return Responses(
        log_ratios_PJK=log_policies_PYK - log_mix_PY[:, :, None], log_mass_PJ=log_mass_PY
    )


def fit(world: Floats, **settings: float) -> OnPolicyFit:
    found = OnPolicyFit(
        num_policies=world.shape[2], step_size=settings.pop("step_size", 0.5), **settings
    )
    for _ in range(20):
        found.step(mixed(world, found.current_K))
    return found


@pytest.mark.parametrize("num_policies", [2, 3, 6, 20])
def test_it_ends_at_the_optimum(num_policies: int) -> None:
    world = toy_world(num_policies, seed=num_policies, outcomes=200)
    best_K, _ = true_optimum(exact(world))
    found = fit(world)
    assert found.path_TK.sum(axis=1) == pytest.approx(1)
    assert np.abs(found.path_TK[-1] - best_K).max() < 1e-3
    assert np.abs(found.weights_K - best_K).max() < 0.005
    active = best_K > 1e-3
    assert np.ptp(found.kl_TK[-1][active]) < 0.01


@pytest.mark.parametrize("min_weight", [0.0, 0.15, 1 / 3])
def test_it_ends_at_an_optimum_on_an_edge_or_a_floor(min_weight: float) -> None:
    world = between_two(seed=5)
    best_K, _ = true_optimum(exact(world), min_weight=min_weight)
    found = fit(world, min_weight=min_weight)
    assert found.path_TK.min() >= min_weight - 1e-12
    assert np.abs(found.path_TK[-1] - best_K).max() < 2e-3


def test_a_flat_direction_is_no_slower_than_a_steep_one() -> None:
    """Two policies are nearly alike and a third is far off: the share of the two hardly matters."""
    world = toy_world(3, seed=3)
    world[:, :, 1] = 0.93 * world[:, :, 0] + 0.07 * world[:, :, 1]
    world[:, :, 1] -= np.log(np.exp(world[:, :, 1]).sum(axis=1, keepdims=True))
    best_K, _ = true_optimum(exact(world))
    left_T = np.abs(fit(world).path_TK - best_K).max(axis=1)
    assert left_T[10] < 0.02 * left_T[0]


def test_the_target_is_where_kls_that_answer_linearly_are_equal() -> None:
    rng = np.random.default_rng(0)
    root_KK = rng.normal(size=(4, 4))
    hessian_KK = root_KK @ root_KK.T
    weights_K, equal_K = np.full(4, 0.25), np.array([0.1, 0.2, 0.3, 0.4])
    kl_K = 2.0 + hessian_KK @ (equal_K - weights_K)
    target_K = newton_target(weights_K, kl_K, hessian_KK)
    assert target_K == pytest.approx(equal_K, abs=0.02)  # the ridge holds it back a little
    assert newton_target(equal_K, np.full(4, 7.0), hessian_KK) == pytest.approx(equal_K, abs=1e-6)


def test_covariance_is_the_hessian_of_the_objective() -> None:
    world, weights_K = toy_world(3, seed=4), np.array([0.2, 0.5, 0.3])
    found_KK = covariance(mixed(world, weights_K))
    # Log ratios against the mixture differ from the others by one number for all policies.
    for direction_K in (np.array([1.0, -1, 0]), np.array([0, 1.0, -1])):
        up, down = (
            objective.gradient(exact(world), weights_K + sign * 1e-5 * direction_K)
            for sign in (1, -1)
        )
        truth = direction_K @ (up - down) / 2e-5
        assert direction_K @ found_KK @ direction_K == pytest.approx(truth, rel=1e-6)


def test_policies_that_cannot_be_told_apart_stay_where_they_are() -> None:
    world = np.repeat(toy_world(1, seed=0), 3, axis=2)
    assert fit(world).weights_K == pytest.approx(np.full(3, 1 / 3))
    assert fit(toy_world(1, seed=0)).weights_K == pytest.approx([1.0])
