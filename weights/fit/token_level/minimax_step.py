"""The step that makes the largest of several costs smallest, if they change linearly with the
weights. The costs are the KLs of K policies, or what `prefmix.weights.reward_fit` makes small.

    min c   such that   cost_a + sum_j J_aj (v_j - w_j) <= c for every cost a,
                        |v_j - w_j| <= radius,   v_j >= floor,   sum_j v_j = 1

This is a linear programme. Its multipliers lambda, one a cost, are non-negative and sum to 1; only
costs that are largest have one above 0. Where no step helps, lambda J is the same number for all
policies that have weight above the floor: lambda is the left null vector of J on the simplex, and
sum_a lambda_a cost_a is the best value that the linear model allows.

Shapes: K policies, A costs.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

from prefmix.weights.fit.sequence_level.objective import Floats

_TIE = 1e-6
"""Price of moving a weight, in nats: of steps that are equally good the shortest is taken."""


def minimax_step(
    weights_K: Floats,
    cost_A: Floats,
    jacobian_AK: Floats,
    *,
    radius: float,
    min_weight: float = 0.0,
) -> tuple[Floats, Floats]:
    """Solves the linear programme.

    Args:
      weights_K: w, the weights that the linear model is centred on, none below the floor.
      cost_A: the costs there, such as KL(mixture || policy k) in nats.
      jacobian_AK: J, dcost_a / dw_j; a common number in all entries of a row has no effect.
      radius: the largest move of any weight.
      min_weight: floor of every weight.
    Returns: (v_K, lambda_A).
    """
    num_policies = len(weights_K)
    if num_policies == 1:
        return np.ones(1), np.eye(len(cost_A))[cost_A.argmax()]
    # The variables are the rises and the falls of the weights, then c.
    ones_1K = np.ones((1, num_policies))
    ones_A1 = np.ones((len(cost_A), 1))
    fall_K = np.clip(weights_K - min_weight, 0.0, radius)
    bounds = [(0.0, radius)] * num_policies + [(0.0, float(fall)) for fall in fall_K]
    found = linprog(
        np.append(np.full(2 * num_policies, _TIE), 1.0),
        A_ub=np.hstack([jacobian_AK, -jacobian_AK, -ones_A1]),
        b_ub=-cost_A,
        A_eq=np.hstack([ones_1K, -ones_1K, np.zeros((1, 1))]),
        b_eq=[0.0],
        bounds=[*bounds, (None, None)],
        method="highs",
    )
    assert found.success, found.message  # not moving is always allowed
    rise_K, fallen_K = np.split(found.x[:-1], 2)
    moved_K = np.maximum(weights_K + rise_K - fallen_K, min_weight)
    multiplier_A = np.maximum(-found.ineqlin.marginals, 0.0)
    return moved_K / moved_K.sum(), multiplier_A / multiplier_A.sum()
