"""Worlds small enough to enumerate: policies over a few outcomes, and the best weights of them."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from prefmix.weights.fit.sequence_level import objective
from prefmix.weights.fit.sequence_level.objective import Floats, Responses


def toy_world(num_policies: int, *, seed: int, num_prompts: int = 3, outcomes: int = 40) -> Floats:
    """Log-probabilities [P, Y, K] of distinct normalised policies over Y outcomes."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_prompts, outcomes, num_policies)) * 1.2
    return logits - logsumexp(logits, axis=1, keepdims=True)


def exact(log_policies_PYK: Floats) -> Responses:
    """Every outcome once, under a uniform proposal, so that the estimator has no error."""
    num_prompts, outcomes, _ = log_policies_PYK.shape
    log_mass = np.full((num_prompts, outcomes), -np.log(outcomes))
    return Responses(log_ratios_PJK=log_policies_PYK + np.log(outcomes), log_mass_PJ=log_mass)


def between_two(*, seed: int) -> Floats:
    """Two policies and a third that is nearly their mixture, [P, Y, 3]."""
    world = toy_world(2, seed=seed)
    between = world.mean(axis=2)
    between -= logsumexp(between, axis=1, keepdims=True)
    return np.concatenate([world, between[:, :, None]], axis=2)


def true_optimum(responses: Responses, *, min_weight: float = 0.0) -> tuple[Floats, float]:
    """(weights, objective) by another method: SLSQP on the simplex, above a floor."""
    num_policies = responses.num_policies
    found = minimize(
        lambda w: objective.value(responses, w),
        np.full(num_policies, 1 / num_policies),
        jac=lambda w: objective.gradient(responses, w),
        bounds=[(min_weight, 1)] * num_policies,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert found.success
    return found.x, float(found.fun)
