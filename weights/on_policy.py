"""Fitting the mixture that is really deployed: the token-level one, on its own samples.

The served mixture normalises every token by itself; the sequence-level product of
`weights.objective` does not, and fitting one does not equalise the KLs of the other. Here responses
are drawn from the mixture at the current weights and g_k = E[log pi_k(y|x)] moves them: a policy
far from the mixture gains weight. No importance weights: the variance stays low at any length.

Shapes: N responses of a round, K policies, T rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from weights.mirror_descent import curvature, mirror_step, with_floor
from weights.objective import Floats, Responses

Draw = Callable[[int, Floats], Responses]
"""(round, weights [K]) -> fresh responses of the mixture there; log ratios against the mixture."""


@dataclass(frozen=True, kw_only=True)
class OnPolicyFit:
    """One run: the answer and the way there."""

    weights_K: Floats
    """The mean of the second half of the iterates."""
    path_TK: Floats
    """The weights of every round, the starting point first, [T + 1, K]."""
    kl_TK: Floats
    """KL(mixture || policy) measured in every round, in nats per response, [T, K]."""

    @property
    def unrest(self) -> float:
        """How unsettled the averaged iterates are, largest over policies: their standard error, or
        how far their second half lies from their first, whichever is more."""
        averaged_TK = self.path_TK[1 + (len(self.path_TK) - 1) // 2 :]
        if len(averaged_TK) < 2:
            return float("inf")
        error_K = averaged_TK.std(axis=0, ddof=1) / np.sqrt(len(averaged_TK))
        middle = len(averaged_TK) // 2
        trend_K = averaged_TK[middle:].mean(axis=0) - averaged_TK[:middle].mean(axis=0)
        return float(np.maximum(error_K, np.abs(trend_K)).max())


def fit_on_policy(
    draw: Draw, *, num_policies: int, num_rounds: int, step_size: float, min_weight: float = 0.0
) -> OnPolicyFit:
    """Mirror descent with a fresh sample a round.

    Args:
      draw: draws and scores a round's responses.
      num_policies: K.
      num_rounds: T, at least 2.
      step_size: in units of 1 / curvature of the first round; constant.
      min_weight: floor of every weight.
    """
    free_K = np.full(num_policies, 1 / num_policies)
    path_TK = np.empty((num_rounds + 1, num_policies))
    kl_TK = np.empty((num_rounds, num_policies))
    path_TK[0] = with_floor(free_K, min_weight)
    unit, slope = 0.0, 1 - num_policies * min_weight
    for index in range(num_rounds):
        responses = draw(index, path_TK[index])
        # The log ratios are against the mixture itself: their mean is minus the KL.
        kl_TK[index] = -mean_log_ratio(responses)
        if index == 0:
            unit = curvature(responses, np.zeros(num_policies))
        if min(unit, slope) > np.finfo(np.float64).eps:
            free_K = mirror_step(free_K, -kl_TK[index], step_size=step_size / (slope * unit))
        path_TK[index + 1] = with_floor(free_K, min_weight)
    weights_K = path_TK[1 + num_rounds // 2 :].mean(axis=0)
    return OnPolicyFit(weights_K=weights_K, path_TK=path_TK, kl_TK=kl_TK)


def mean_log_ratio(responses: Responses) -> Floats:
    """Mean over prompts of the mean log ratio of their responses, [K]."""
    mean_K: Floats = log_ratio_per_prompt(responses).mean(axis=0)
    return mean_K


def log_ratio_per_prompt(responses: Responses) -> Floats:
    """Mean log ratio of each prompt's responses, [P, K]; minus it estimates KL(mixture || policy)
    when the responses are the mixture's own."""
    share_PJ = np.exp(responses.log_mass_PJ)
    mean_PK: Floats = np.einsum("pj,pjk->pk", share_PJ, responses.log_ratios_PJK)
    return mean_PK
