"""Fitting the mixture that is really deployed: the token-level one, on its own samples.

The served mixture normalises every token by itself; the sequence-level product of
`prefmix.weights.fit.objective` does not, and fitting one does not equalise the KLs of the other.
Here responses are drawn from the mixture at the current weights and g_k = E[log pi_k(y|x)] moves
them: a policy far from the mixture gains weight. No importance weights: the variance stays low at
any length.

A round's responses also say how the KLs answer to a step: dKL_k = -(H dw)_k + the same for all k,
with H the covariance of the log ratios under the mixture, which is the Hessian of F (exact for the
product of whole sequences, near for the mixture of tokens). So a round goes part of the way to
where all KLs would be equal, a damped Newton step, equally fast along steep and flat directions.

Shapes: P prompts, J responses of a prompt, K policies, T rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from prefmix.weights.fit.mirror_descent import with_floor
from prefmix.weights.fit.objective import Floats, Responses

_RIDGE = 1e-3
"""Of the mean curvature, added in every direction."""
_SUM_ROW = 1e3
"""How much heavier than the rest the row that makes weights sum to 1 weighs."""

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
    """Damped Newton steps with a fresh sample a round.

    Args:
      draw: draws and scores a round's responses.
      num_policies: K.
      num_rounds: T, at least 2.
      step_size: the share of the way to the round's target, in (0, 1]; constant.
      min_weight: floor of every weight.
    """
    path_TK = np.empty((num_rounds + 1, num_policies))
    kl_TK = np.empty((num_rounds, num_policies))
    path_TK[0] = with_floor(np.full(num_policies, 1 / num_policies), min_weight)
    hessian_KK = np.zeros((num_policies, num_policies))
    for index in range(num_rounds):
        responses = draw(index, path_TK[index])
        # The log ratios are against the mixture itself: their mean is minus the KL.
        kl_TK[index] = -mean_log_ratio(responses)
        # It changes slowly: the rounds before still count.
        hessian_KK += (covariance(responses) - hessian_KK) * (1 if index == 0 else 0.5)
        target_K = newton_target(path_TK[index], kl_TK[index], hessian_KK, min_weight=min_weight)
        path_TK[index + 1] = path_TK[index] + step_size * (target_K - path_TK[index])
    weights_K = path_TK[1 + num_rounds // 2 :].mean(axis=0)
    return OnPolicyFit(weights_K=weights_K, path_TK=path_TK, kl_TK=kl_TK)


def newton_target(
    weights_K: Floats, kl_K: Floats, hessian_KK: Floats, *, min_weight: float = 0.0
) -> Floats:
    """Where the largest KL would be smallest if the KLs answered linearly.

    Minimises -kl.(v - w) + (v - w) H (v - w) / 2 over the v with v_k >= min_weight that sum to 1;
    at the minimum all policies above the floor are equally far. Solved as non-negative least
    squares.

    Args:
      weights_K: w, where the others were measured.
      kl_K: KL(mixture || policy k) there.
      hessian_KK: H.
      min_weight: floor of every weight.
    """
    num_policies = len(weights_K)
    scale = float(np.trace(hessian_KK)) / num_policies
    slope = 1 - num_policies * min_weight
    if min(scale, slope) <= np.finfo(np.float64).eps:
        return weights_K  # the policies cannot be told apart, or the floor leaves no choice
    value_K, vector_KK = np.linalg.eigh(hessian_KK)
    # Along what hardly differs between the policies a sample says little: no long steps there.
    root_K = np.sqrt(np.maximum(value_K, 0.0) + _RIDGE * scale)
    matrix_KK = root_K[:, None] * vector_KK.T
    wanted_K = matrix_KK @ (weights_K - min_weight) + vector_KK.T @ (kl_K - kl_K.mean()) / root_K
    sum_row_1K = np.full((1, num_policies), _SUM_ROW * np.sqrt(scale))
    free_K, _ = nnls(
        np.vstack([matrix_KK, sum_row_1K]), np.append(wanted_K, sum_row_1K[0, 0] * slope)
    )
    return with_floor(free_K / free_K.sum(), min_weight)


def covariance(responses: Responses) -> Floats:
    """Covariance of the log ratios over the responses of a prompt, mean over prompts, [K, K]."""
    share_PJ = np.exp(responses.log_mass_PJ)
    centred_PJK = responses.log_ratios_PJK - log_ratio_per_prompt(responses)[:, None, :]
    flat_NK = centred_PJK.reshape(-1, responses.num_policies)
    mean_KK: Floats = (flat_NK * share_PJ.reshape(-1, 1)).T @ flat_NK / responses.num_prompts
    return mean_KK


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
