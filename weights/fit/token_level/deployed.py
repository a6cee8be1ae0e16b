"""The KLs of the mixture that will be served, measured on responses drawn for nothing else.

How much lower could the largest KL become? For any multipliers lambda on the simplex (those of
`prefmix.weights.fit.token_level.minimax_step` make the bound tight) a linear model of the KLs says:
at weights up to a share REACH of the way to any others, the largest KL is lower than now by at most

    max_k KL_k - sum_k lambda_k KL_k + REACH max_j ( -lambda J (e_j - w) )

with e_j all weight on policy j (or as much as a floor lets it have). This is the largest of K * K
means over prompts, so it has an interval of the kind in `prefmix.weights.intervals.means`. The
multipliers come from the fit's own responses and J from the fresh ones.

Shapes: P prompts, K policies, A costs, V weights to move towards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefmix.weights.fit.sequence_level.certificate import leads
from prefmix.weights.fit.sequence_level.mirror_descent import with_floor
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.token_level.on_policy import Measured
from prefmix.weights.intervals.means import (
    Interval,
    above_zero,
    interval_of_largest,
    mean_intervals,
)

REACH = 0.1
"""Share of the way to other weights that the bound on the largest KL's fall speaks of."""


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """The served mixture at the fitted weights, measured on fresh responses of its own."""

    kl: dict[str, float]
    """KL(mixture || policy) by policy, in nats a response."""
    kl_interval: dict[str, Interval]
    """95 % interval of each KL over prompts."""
    largest: float
    """max_k KL_k."""
    largest_interval: Interval
    """95 % interval of the largest KL."""
    gap: float
    """max_k KL_k - sum_k w_k KL_k; with a floor, over the weight above it. Says how unequal the
    KLs are; of a token-level mixture that need not be 0 at the optimum."""
    gap_interval: Interval
    """95 % interval of the gap."""
    fall: float | None = None
    """The most by which the largest KL could be lower within REACH; None without multipliers,
    and for responses whose KLs were not measured while sampling. Moves towards policies of weight
    0 are left out."""
    fall_interval: Interval | None = None
    """95 % interval of the fall."""
    multipliers: dict[str, float] | None = None
    """The multipliers by policy: the shares of the policies that bind the answer."""
    num_responses: int
    """Responses measured."""
    num_prompts: int = 0
    """Prompts that they answer; the observations of all intervals."""
    mean_tokens: float
    """Mean length of the responses, in tokens."""


def measure_deployed(
    measured: Measured,
    weights_K: Floats,
    *,
    names: tuple[str, ...],
    min_weight: float,
    mean_tokens: float,
    multiplier_K: Floats | None = None,
) -> Deployed:
    """Estimates the KLs of the served mixture.

    Args:
      measured: fresh responses of the mixture at `weights_K`.
      weights_K: the mixture's weights.
      names: the K policies.
      min_weight: the floor that the weights were fitted above; 0 for weights that were given.
      mean_tokens: mean length of the responses.
      multiplier_K: lambda, from other responses; None if the largest KL was not minimised.
    """
    kl_PK = measured.kl_per_prompt()
    largest, largest_interval = above_zero(interval_of_largest(kl_PK))
    gap, gap_interval = above_zero(
        interval_of_largest(leads(kl_PK, weights_K, min_weight=min_weight))
    )
    fall, fall_interval = None, None
    if multiplier_K is not None and len(names) > 1:
        found_PF = falls(measured, weights_K, multiplier_K, min_weight=min_weight)
        if np.isfinite(found_PF).all():
            fall, fall_interval = above_zero(interval_of_largest(found_PF))
    return Deployed(
        kl=dict(zip(names, kl_PK.mean(axis=0).tolist(), strict=True)),
        kl_interval=dict(zip(names, mean_intervals(kl_PK), strict=True)),
        largest=largest,
        largest_interval=largest_interval,
        gap=gap,
        gap_interval=gap_interval,
        fall=fall,
        fall_interval=fall_interval,
        multipliers=None
        if multiplier_K is None
        else dict(zip(names, multiplier_K.tolist(), strict=True)),
        num_responses=len(measured.logprob_N),
        num_prompts=len(kl_PK),
        mean_tokens=mean_tokens,
    )


def falls(
    measured: Measured, weights_K: Floats, multiplier_K: Floats, *, min_weight: float = 0.0
) -> Floats:
    """The K * V quantities, by prompt, of which the largest mean bounds the fall, [P, K * V].

    Args: as `measure_deployed`.
    """
    kl_PK, jacobian_PKK = measured.kl_per_prompt(), measured.jacobian_per_prompt()
    return largest_falls(kl_PK, jacobian_PKK, weights_K, multiplier_K, min_weight=min_weight)


def largest_falls(
    cost_PA: Floats,
    jacobian_PAK: Floats,
    weights_K: Floats,
    multiplier_A: Floats,
    *,
    min_weight: float = 0.0,
) -> Floats:
    """The same for any A costs, [P, A * V].

    Args:
      cost_PA: the costs by prompt at `weights_K`.
      jacobian_PAK: their derivatives by the weights.
      weights_K, multiplier_A, min_weight: as `measure_deployed`.
    """
    over_PA = cost_PA - (cost_PA @ multiplier_A)[:, None]
    slope_PK = np.einsum("a,pak->pk", multiplier_A, jacobian_PAK)
    has_weight_K = weights_K > 0
    slope_PK = np.where(has_weight_K, slope_PK, 0.0)
    ends_VK = with_floor(np.eye(len(weights_K)), min_weight)[has_weight_K]
    down_PV = -REACH * slope_PK @ (ends_VK - weights_K).T
    both_PAV = over_PA[:, :, None] + down_PV[:, None, :]
    found_PF: Floats = both_PAV.reshape(len(cost_PA), -1)
    return found_PF
