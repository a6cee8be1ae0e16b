"""The on-policy fit and its step, on worlds whose KLs and optimum are known by enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.token_level.minimax_step import minimax_step
from prefmix.weights.fit.token_level.on_policy import Measured, OnPolicyFit
from support.fit.tree_world import TreeWorld


def measured(world: TreeWorld, weights_K: Floats, *, each: int, seed: int) -> Measured:
    """`each` responses to every prompt of the world."""
    prompt_N = np.repeat(np.arange(world.num_prompts), each)
    found = world.sample(weights_K, prompt_N, np.random.default_rng(seed))
    return Measured(
        prompt_of_N=prompt_N,
        logprob_N=found.logprob_N,
        policy_logprobs_NK=found.policy_logprobs_NK,
        kl_NK=found.kl_NK,
        entropy_N=found.entropy_N,
    )


def fit(world: TreeWorld, *, rounds: int, each: int, floor: float = 0.0) -> OnPolicyFit:
    found = OnPolicyFit(num_policies=world.num_policies, min_weight=floor)
    for index in range(rounds):
        found.step(measured(world, found.current_K, each=each, seed=index))
    return found


@pytest.mark.parametrize("num_policies", [2, 3, 5])
def test_kls_and_jacobian_are_those_of_the_enumerated_mixture(num_policies: int) -> None:
    """The Jacobian is compared with finite differences, along moves that keep the weights' sum."""
    world = TreeWorld(num_policies, seed=13, scale=2.5, num_prompts=2, length=4, num_tokens=3)
    weights_K = np.random.default_rng(0).dirichlet(np.full(num_policies, 5.0))
    found = measured(world, weights_K, each=100_000, seed=2)
    assert found.kl_per_prompt() == pytest.approx(world.kl_per_prompt(weights_K), abs=0.03)
    moves = np.eye(num_policies) - 1 / num_policies
    truth_KK = world.jacobian(weights_K) @ moves
    found_KK = found.jacobian_per_prompt().mean(axis=0) @ moves
    assert np.abs(truth_KK).max() > 1
    assert found_KK == pytest.approx(truth_KK, abs=0.1)
    # The covariance of the log-probabilities alone is another matrix: that of whole sequences.
    ratios_NK = found.policy_logprobs_NK - found.logprob_N[:, None]
    by_prompt = ratios_NK.reshape(2, -1, num_policies)
    plain_KK = -np.mean([np.cov(rows.T) for rows in by_prompt], axis=0) @ moves
    assert np.abs((moves @ plain_KK) - (moves @ truth_KK)).max() > 0.2


def test_kls_that_were_not_measured_come_from_log_ratios() -> None:
    world = TreeWorld(2, seed=3, num_prompts=3, length=3)
    found = measured(world, np.array([0.4, 0.6]), each=4, seed=0)
    found.kl_NK[:, 1] = np.nan
    ratio_N = found.logprob_N - found.policy_logprobs_NK[:, 1]
    kl_PK = found.kl_per_prompt()
    assert kl_PK[:, 1] == pytest.approx(ratio_N.reshape(3, 4).mean(axis=1))
    jacobian_PKK = found.jacobian_per_prompt()
    assert np.isfinite(jacobian_PKK[:, :, 0]).all()
    assert np.isnan(jacobian_PKK[:, :, 1]).all()


@pytest.mark.parametrize(("num_policies", "seed"), [(2, 0), (3, 1), (5, 2)])
def test_it_ends_near_the_least_largest_kl(num_policies: int, seed: int) -> None:
    world = TreeWorld(num_policies, seed=seed, num_prompts=8, length=3)
    _, least = world.least_largest_kl(starts=2)
    found = fit(world, rounds=8, each=64)
    assert found.path_TK.sum(axis=1) == pytest.approx(1)
    assert found.path_TK.min() >= 0
    uniform = world.kl(np.full(num_policies, 1 / num_policies)).max()
    reached = world.kl(found.weights_K).max()
    assert reached - least < min(0.04, 0.3 * (uniform - least) + 0.01)
    assert found.multiplier_K.sum() == pytest.approx(1)


def equal_pair(world: TreeWorld, nearest: int) -> Floats:
    """The weights without the nearest policy at which the other two are equally far."""

    def pair(share: float) -> Floats:
        return np.insert([share, 1 - share], nearest, 0.0)

    def lead(share: float) -> float:
        first, second = np.delete(world.kl(pair(share)), nearest)
        return float(first - second)

    return pair(brentq(lead, 1e-3, 1 - 1e-3))


@pytest.mark.parametrize("scale", [2.5, 4.0, 6.0])
def test_where_equal_kls_are_not_the_best_it_goes_lower(scale: float) -> None:
    """A policy that is much nearer than the others keeps weight, because that lowers their KLs.

    The rule of whole sequences, weight only for policies whose KL is the largest, ends at a pair.
    """
    world = TreeWorld(3, seed=13, scale=scale, num_prompts=2, length=4, num_tokens=3)
    best_K, least = world.least_largest_kl(starts=3)
    nearest = int(world.kl(best_K).argmin())
    pair_K = world.kl(equal_pair(world, nearest))
    assert pair_K[nearest] < pair_K.max() - 0.3
    assert least < pair_K.max() - 0.1
    found = fit(world, rounds=10, each=128)
    kl_K = world.kl(found.weights_K)
    assert kl_K.max() < pair_K.max() - 0.1
    assert kl_K.max() - least < 0.03
    assert kl_K[nearest] < kl_K.max() - 0.5
    assert found.multiplier_K[nearest] < 0.01  # it does not bind the answer


def test_a_floor_is_kept() -> None:
    world = TreeWorld(3, seed=4, num_prompts=8, length=3)
    found = fit(world, rounds=6, each=32, floor=0.3)
    assert found.path_TK.min() >= 0.3 - 1e-12
    nowhere = fit(world, rounds=2, each=8, floor=1 / 3)
    assert nowhere.weights_K == pytest.approx(np.full(3, 1 / 3))


def test_the_step_is_the_solution_of_its_linear_programme() -> None:
    """Against every point of a fine grid; the multipliers prove that no other point is better."""
    rng = np.random.default_rng(0)
    grid = np.array(
        [(a, b, 100 - a - b) for a in range(101) for b in range(101 - a)], dtype=np.float64
    )
    grid /= 100
    for _ in range(20):
        weights_K, kl_K = rng.dirichlet(np.ones(3)), rng.uniform(1, 2, 3)
        jacobian_KK = rng.normal(size=(3, 3)) - 3 * np.eye(3)
        best_K, multiplier_K = minimax_step(weights_K, kl_K, jacobian_KK, radius=0.2)
        assert np.abs(best_K - weights_K).max() <= 0.2 + 1e-9
        near = grid[np.abs(grid - weights_K).max(axis=1) <= 0.2]
        values = (kl_K + (near - weights_K) @ jacobian_KK.T).max(axis=1)
        found_K = kl_K + jacobian_KK @ (best_K - weights_K)
        assert found_K.max() <= values.min() + 1e-6
        assert multiplier_K.min() >= 0
        assert multiplier_K @ found_K == pytest.approx(found_K.max(), abs=1e-6)
        dual = multiplier_K @ (kl_K[:, None] + jacobian_KK @ (near - weights_K).T)
        assert dual.min() >= found_K.max() - 1e-6


def test_policies_that_cannot_be_told_apart_stay_where_they_are() -> None:
    moved_K, _ = minimax_step(np.full(3, 1 / 3), np.full(3, 0.4), np.zeros((3, 3)), radius=0.2)
    assert moved_K == pytest.approx(np.full(3, 1 / 3))
    single_K, multiplier_K = minimax_step(np.ones(1), np.zeros(1), np.zeros((1, 1)), radius=0.2)
    assert (single_K.tolist(), multiplier_K.tolist()) == ([1.0], [1.0])


def test_a_policy_without_weight_still_takes_part_in_the_next_round() -> None:
    world = TreeWorld(3, seed=7, scale=2.5, num_prompts=2, length=4, num_tokens=3)
    found = fit(world, rounds=8, each=64)
    assert found.weights_K.min() == 0
    assert found.current_K.min() > 0
    assert found.current_K.sum() == pytest.approx(1)
