"""The fit of the token-level mixture, which is the one that is served, on its own responses.

The served mixture normalises every token separately; the sequence-level product of
`prefmix.weights.fit.objective` does not, and fitting one does not equalise the KLs of the other.
This fit draws responses from the mixture at the current weights, and g_k = E[log pi_k(y|x)] moves
the weights: a policy far from the mixture gains weight. There are no importance weights, so the
variance stays low at any length.

A round's responses also tell how the KLs change with a step: dKL_k = -(H dw)_k + the same for all
k, where H is the covariance of the log ratios under the mixture. H is the Hessian of F: exact for
the product of whole sequences, close for the mixture of tokens. A round therefore goes part of the
way to the weights at which all KLs would be equal: a damped Newton step, which is equally fast
along steep and flat directions.

Shapes: P prompts, J responses of a prompt, K policies, T rounds.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from prefmix.weights.fit.mirror_descent import with_floor
from prefmix.weights.fit.objective import Floats, Responses

_RIDGE = 1e-3
"""Share of the mean curvature that is added in every direction."""
_SUM_ROW = 1e3
"""Factor on the least-squares row that makes the weights sum to 1."""


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
    """The remaining movement of the averaged iterates, largest over policies.

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
    """The weights at which the largest KL would be smallest, if the KLs were linear in a step.

    Minimises -kl.(v - w) + (v - w) H (v - w) / 2 over the v with v_k >= min_weight that sum to 1.
    At the minimum all policies above the floor are equally far. The problem is solved as
    non-negative least squares.

    Args:
      weights_K: w, the weights at which KLs and Hessian were measured.
      kl_K: KL(mixture || policy k), in nats.
      hessian_KK: H.
      min_weight: floor of every weight.
    """
    num_policies = len(weights_K)
    scale = float(np.trace(hessian_KK)) / num_policies
    slope = 1 - num_policies * min_weight
    if min(scale, slope) <= np.finfo(np.float64).eps:
        return weights_K  # the policies cannot be told apart, or the floor leaves no choice
    value_K, vector_KK = np.linalg.eigh(hessian_KK)
    # A sample says little about directions in which policies hardly differ: no long steps there.
    root_K = np.sqrt(np.maximum(value_K, 0.0) + _RIDGE * scale)
    matrix_KK = root_K[:, None] * vector_KK.T
    wanted_K = matrix_KK @ (weights_K - min_weight) + vector_KK.T @ (kl_K - kl_K.mean()) / root_K
    sum_row_1K = np.full((1, num_policies), _SUM_ROW * np.sqrt(scale))
    free_K, _ = nnls(
        np.vstack([matrix_KK, sum_row_1K]), np.append(wanted_K, sum_row_1K[0, 0] * slope)
    )
    return with_floor(free_K / free_K.sum(), min_weight)


def covariance(responses: Responses) -> Floats:
    """Covariance of the log ratios over a prompt's responses, averaged over prompts, [K, K]."""
    share_PJ = np.exp(responses.log_mass_PJ)
    centred_PJK = responses.log_ratios_PJK - log_ratio_per_prompt(responses)[:, None, :]
    flat_NK = centred_PJK.reshape(-1, responses.num_policies)
    mean_KK: Floats = (flat_NK * share_PJ.reshape(-1, 1)).T @ flat_NK / responses.num_prompts
    return mean_KK


def mean_log_ratio(responses: Responses) -> Floats:
    """Mean log ratio, over the responses of a prompt and then over prompts, [K]."""
    mean_K: Floats = log_ratio_per_prompt(responses).mean(axis=0)
    return mean_K


def log_ratio_per_prompt(responses: Responses) -> Floats:
    """Mean log ratio of each prompt's responses, [P, K].

    Its negative estimates KL(mixture || policy) if the mixture itself drew the responses.
    """
    share_PJ = np.exp(responses.log_mass_PJ)
    mean_PK: Floats = np.einsum("pj,pjk->pk", share_PJ, responses.log_ratios_PJK)
    return mean_PK
