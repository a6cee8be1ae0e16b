"""The gains of the mixture that will be served, measured on responses drawn for nothing else, and
how much more the fit's aim could be.

The aim is a smallest of several means: of the O gains themselves (`max-min-reward`), or of one
weighted mean of them (`mean`, `weighted`). For any multipliers lambda on the simplex (those of
`prefmix.weights.fit.token_level.minimax_step` make the bound tight) a linear model of the gains
says: at weights up to a share REACH of the way to any others, the smallest is higher than now by
at most

    sum_a lambda_a aim_a - min_a aim_a + REACH max_j ( lambda G (e_j - w) )

which is the bound of `prefmix.weights.fit.token_level.deployed` with the aims' negatives as costs,
and has the same kind of interval. The scales of the gains count as given.

Shapes: P prompts, K policies, O objectives, A aims.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.token_level.deployed import largest_falls
from prefmix.weights.intervals.means import (
    Interval,
    above_zero,
    interval_of_largest,
    mean_intervals,
)
from prefmix.weights.reward_fit.gains import Judged


@dataclass(frozen=True, kw_only=True)
class MeasuredGains:
    """The served mixture at the fitted weights."""

    gain: dict[str, float]
    """Gain by objective; 0 is the reference, 1 the best single policy."""
    gain_interval: dict[str, Interval]
    """95 % interval of each gain over prompts."""
    aim: float
    """The smallest gain, or the weighted mean of gains: what the fit makes large."""
    aim_interval: Interval
    """95 % interval of the aim."""
    rise: float
    """The most by which the aim could be higher within REACH."""
    rise_interval: Interval
    """95 % interval of the rise."""
    multipliers: dict[str, float] | None
    """The share of each objective in what limits the smallest gain; None for a weighted mean."""
    kl: dict[str, float]
    """KL(mixture || policy) by policy, in nats a response."""
    num_responses: int
    num_prompts: int
    mean_tokens: float


def measure_gains(
    judged: Judged,
    weights_K: Floats,
    multiplier_A: Floats,
    *,
    aims_AO: Floats,
    objectives: tuple[str, ...],
    policies: tuple[str, ...],
    min_weight: float,
    mean_tokens: float,
) -> MeasuredGains:
    """Measures the gains.

    Args:
      judged: fresh responses of the mixture at `weights_K`, which has a weight for all policies
        that the slope is wanted of.
      weights_K: the mixture's weights.
      multiplier_A: lambda, from other responses.
      aims_AO: each aim's weights of the objectives.
      objectives, policies: their names.
      min_weight: the floor that the weights were fitted above.
      mean_tokens: mean length of the responses.
    """
    gain_PO = judged.gain_per_prompt()
    aim_PA = gain_PO @ aims_AO.T
    slope_PAK = np.einsum("ao,pok->pak", aims_AO, judged.slope_per_prompt())
    value, (low, high) = interval_of_largest(-aim_PA)
    could_PF = largest_falls(-aim_PA, -slope_PAK, weights_K, multiplier_A, min_weight=min_weight)
    rise, rise_interval = above_zero(interval_of_largest(could_PF))
    kl_K = judged.measured.kl_per_prompt().mean(axis=0)
    is_smallest = len(aims_AO) > 1
    return MeasuredGains(
        gain=dict(zip(objectives, gain_PO.mean(axis=0).tolist(), strict=True)),
        gain_interval=dict(zip(objectives, mean_intervals(gain_PO), strict=True)),
        aim=-value,
        aim_interval=(-high, -low),
        rise=rise,
        rise_interval=rise_interval,
        multipliers=dict(zip(objectives, multiplier_A.tolist(), strict=True))
        if is_smallest
        else None,
        kl=dict(zip(policies, kl_K.tolist(), strict=True)),
        num_responses=len(judged.gains_NO),
        num_prompts=len(gain_PO),
        mean_tokens=mean_tokens,
    )
