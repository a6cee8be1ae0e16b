"""The step that makes the largest KL smallest, if KLs change linearly with the weights.

    min c   such that   KL_k + sum_j J_kj (v_j - w_j) <= c for every policy k,
                        |v_j - w_j| <= radius,   v_j >= floor,   sum_j v_j = 1

This is a linear programme. Its multipliers lambda, one a policy, are non-negative and sum to 1;
only policies whose KL is largest have one above 0. Where no step helps, lambda J is the same
number for all policies that have weight above the floor: lambda is the left null vector of J on
the simplex, and sum_k lambda_k KL_k is the best value that the linear model allows.

Shapes: K policies.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

from prefmix.weights.fit.objective import Floats

_TIE = 1e-6
"""Price of moving a weight, in nats: of steps that are equally good the shortest is taken."""


def minimax_step(
    weights_K: Floats,
    kl_K: Floats,
    jacobian_KK: Floats,
    *,
    radius: float,
    min_weight: float = 0.0,
) -> tuple[Floats, Floats]:
    """Solves the linear programme.

    Args:
      weights_K: w, the weights that the linear model is centred on, none below the floor.
      kl_K: KL(mixture || policy k) there, in nats.
      jacobian_KK: J, dKL_k / dw_j; a common number in all entries of a row has no effect.
      radius: the largest move of any weight.
      min_weight: floor of every weight.
    Returns: (v_K, lambda_K).
    """
    num_policies = len(weights_K)
    if num_policies == 1:
        return np.ones(1), np.ones(1)
    # The variables are the rises and the falls of the weights, then c.
    ones_1K = np.ones((1, num_policies))
    fall_K = np.clip(weights_K - min_weight, 0.0, radius)
    bounds = [(0.0, radius)] * num_policies + [(0.0, float(fall)) for fall in fall_K]
    found = linprog(
        np.append(np.full(2 * num_policies, _TIE), 1.0),
        A_ub=np.hstack([jacobian_KK, -jacobian_KK, -ones_1K.T]),
        b_ub=-kl_K,
        A_eq=np.hstack([ones_1K, -ones_1K, np.zeros((1, 1))]),
        b_eq=[0.0],
        bounds=[*bounds, (None, None)],
        method="highs",
    )
    assert found.success, found.message  # not moving is always allowed
    rise_K, fallen_K = np.split(found.x[:-1], 2)
    moved_K = np.maximum(weights_K + rise_K - fallen_K, min_weight)
    multiplier_K = np.maximum(-found.ineqlin.marginals, 0.0)
    return moved_K / moved_K.sum(), multiplier_K / multiplier_K.sum()
