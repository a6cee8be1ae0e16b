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

import numpy as np
from scipy.optimize import nnls

from prefmix.weights.fit.mirror_descent import with_floor
from prefmix.weights.fit.objective import Floats, Responses

_RIDGE = 1e-3
"""Of the mean curvature, added in every direction."""
_SUM_ROW = 1e3
"""How much heavier than the rest the row that makes weights sum to 1 weighs."""


class OnPolicyFit:
    """Damped Newton steps, one per round, each from the round's own responses."""

    def __init__(self, *, num_policies: int, step_size: float, min_weight: float = 0.0) -> None:
        """Begins at uniform weights.

        Args:
          num_policies: K.
          step_size: the share of the way to its target that a round goes, in (0, 1]; constant.
          min_weight: floor of every weight.
        """
        self._step_size, self._min_weight = step_size, min_weight
        self._path = [with_floor(np.full(num_policies, 1 / num_policies), min_weight)]
        self._kls: list[Floats] = []
        self._hessian_KK = np.zeros((num_policies, num_policies))

    @property
    def current_K(self) -> Floats:
        """The weights of the next round, whose responses are to be drawn there."""
        return self._path[-1]

    def step(self, responses: Responses) -> None:
        """Moves the weights by one round.

        Args:
          responses: fresh responses of the mixture at `current_K`, log ratios against the mixture.
        """
        weights_K = self._path[-1]
        # The log ratios are against the mixture itself: their mean is minus the KL.
        kl_K = -mean_log_ratio(responses)
        # The Hessian changes slowly: earlier rounds still count.
        share = 0.5 if self._kls else 1
        self._hessian_KK += (covariance(responses) - self._hessian_KK) * share
        target_K = newton_target(weights_K, kl_K, self._hessian_KK, min_weight=self._min_weight)
        self._kls.append(kl_K)
        self._path.append(weights_K + self._step_size * (target_K - weights_K))

    @property
    def path_TK(self) -> Floats:
        """The weights of every round, the starting point first, [T + 1, K]."""
        return np.stack(self._path)

    @property
    def kl_TK(self) -> Floats:
        """KL(mixture || policy) measured in every round, in nats a response, [T, K]."""
        return np.stack(self._kls)

    @property
    def weights_K(self) -> Floats:
        """The answer: the mean of the second half of the iterates."""
        answer_K: Floats = averaged_half(self.path_TK).mean(axis=0)
        return answer_K


def averaged_half(path_TK: Floats) -> Floats:
    """The iterates whose mean is the answer: the second half of the steps."""
    return path_TK[1 + (len(path_TK) - 1) // 2 :]


def unrest(path_TK: Floats) -> float:
    """How much the averaged iterates still move, largest over policies.

    Either their standard error or the distance between the means of their two halves, whichever is
    larger.
    """
    averaged_TK = averaged_half(path_TK)
    if len(averaged_TK) < 2:
        return float("inf")
    error_K = averaged_TK.std(axis=0, ddof=1) / np.sqrt(len(averaged_TK))
    middle = len(averaged_TK) // 2
    trend_K = averaged_TK[middle:].mean(axis=0) - averaged_TK[:middle].mean(axis=0)
    return float(np.maximum(error_K, np.abs(trend_K)).max())


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
