"""The fit of the token-level mixture, which is the one that is served, on its own responses.

The aim is the least largest distance: min over w of max_k KL(mixture_w || pi_k). The served
mixture normalises every token separately, so this is not the sequence-level problem of
`prefmix.weights.fit.sequence_level.objective`: there, the KLs of all policies with weight are equal
at the optimum; here they need not be, and weights at which they are equal need not be optimal.

With sums over the tokens t of a response y of the mixture, everything is measured while sampling:

    KL_k = E[ sum_t KL_t,k ]                   KL_t,k = KL(mixture || pi_k) at token t
    J_kj = dKL_k / dw_j = E[ (log p(y) - log pi_k(y)) s_j(y) ]
    s_j  = d log p(y) / dw_j = sum_t (log pi_j(y_t) + KL_t,j + H_t)

H_t is the mixture's entropy; it is the same for all j, as is log p(y) for all k, and without them
J is -Cov(log pi_k, log pi_j + sum_t KL_t,j). The identity for s_j holds because the mixture's mean
of log pi_j at a token is -KL_t,j - H_t. The mean of s_j is 0. The covariance of log pi_k and log
pi_j alone is the Hessian of the sequence-level F, not -J.

Where parameters are mixed, no policy runs while the response is drawn. Then KL_k = E[log p(y) -
log pi_k(y)], s_j comes from prefmix.weights.engines.finite_differences, and J is as above.

A round draws responses at the current weights. Its KLs and J make a linear model; the models of
all rounds are pooled, near ones with more weight, and `minimax_step` goes to the smallest largest
KL of the pooled model inside a box that shrinks from round to round. The problem is not convex:
what is found is a local optimum.

Shapes: N responses, P prompts, K policies, A costs (here the K KLs), T rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefmix.weights.fit.sequence_level.mirror_descent import with_floor
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.token_level.minimax_step import minimax_step

LEAST_SAMPLED = 1e-3
"""Least weight that a round samples with: a policy without weight would not be measured."""
_SHRINK, _LEAST_RADIUS = 0.75, 0.03
"""The box's share of the round before, and its least radius."""
_POOLED_WITHIN = 0.2
"""Distance, as a share of the total weight, at which a round counts exp(-1/2)."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Responses of the mixture with what was measured while they were sampled, in nats."""

    prompt_of_N: NDArray[np.intp]
    """Prompt of each response, 0 .. P-1; each prompt has at least two."""
    logprob_N: Floats
    """log p(y) of the mixture."""
    policy_logprobs_NK: Floats
    """log pi_k(y)."""
    kl_NK: Floats
    """sum_t KL_t,k; NaN in the columns of policies that the mixture gave no weight."""
    entropy_N: Floats
    """sum_t H_t."""
    differences_NK: Floats | None = None
    """d log p(y) / dw_j where parameters are mixed, up to a number that all policies share
    (prefmix.weights.engines.finite_differences); None if it follows from KLs and entropy."""

    def kl_per_prompt(self) -> Floats:
        """KL(mixture || policy) by prompt, [P, K]. Log ratios stand in for KLs not measured."""
        log_ratio_NK = self.logprob_N[:, None] - self.policy_logprobs_NK
        return self.by_prompt(np.where(np.isnan(self.kl_NK), log_ratio_NK, self.kl_NK))

    def jacobian_per_prompt(self) -> Floats:
        """dKL_k / dw_j by prompt, [P, K, K]; NaN in column j if s_j was not measured."""
        return self.slope_per_prompt(self.logprob_N[:, None] - self.policy_logprobs_NK)

    def slope_per_prompt(self, values_NA: Floats) -> Floats:
        """d E[value] / dw_j by prompt, E[value s_j], of values that depend on the response alone.

        Returns: [P, A, K]; NaN in column j if s_j was not measured.
        """
        score_NK = self.differences_NK
        if score_NK is None:
            score_NK = self.policy_logprobs_NK + self.kl_NK + self.entropy_N[:, None]
        # Each prompt's mean is taken out, which costs one response of its sample: m / (m - 1).
        centred_NA = values_NA - self.by_prompt(values_NA)[self.prompt_of_N]
        count_P = np.bincount(self.prompt_of_N)
        mean_PAK = self.by_prompt(centred_NA[:, :, None] * score_NK[:, None, :])
        slope_PAK: Floats = mean_PAK * (count_P / (count_P - 1))[:, None, None]
        return slope_PAK

    def by_prompt(self, values_N: Floats) -> Floats:
        """Means over the responses of each prompt."""
        count_P = np.bincount(self.prompt_of_N)
        sums_P = np.zeros((len(count_P), *values_N.shape[1:]))
        np.add.at(sums_P, self.prompt_of_N, values_N)
        return sums_P / count_P.reshape(-1, *[1] * (values_N.ndim - 1))


@dataclass(frozen=True, kw_only=True)
class _Round:
    weights_K: Floats
    cost_A: Floats
    jacobian_AK: Floats
    num_prompts: int


class PooledSteps:
    """Steps that make the largest cost smallest, one per round, on the pooled linear models of all
    rounds so far."""

    def __init__(self, *, num_policies: int, radius: float = 0.25, min_weight: float = 0.0) -> None:
        """Begins at uniform weights.

        Args:
          num_policies: K.
          radius: the largest move of any weight in the first round; later ones are shorter.
          min_weight: floor of every weight.
        """
        self._radius, self._min_weight = radius, min_weight
        self._path = [with_floor(np.full(num_policies, 1 / num_policies), min_weight)]
        self._rounds: list[_Round] = []
        self._multiplier_A = np.full(num_policies, 1 / num_policies)

    @property
    def current_K(self) -> Floats:
        """The weights of the next round, whose responses are to be drawn there; all positive."""
        positive_K = np.maximum(self._path[-1], LEAST_SAMPLED)
        weights_K: Floats = positive_K / positive_K.sum()
        return weights_K

    def move(self, cost_PA: Floats, jacobian_PAK: Floats) -> None:
        """Moves the weights by one round.

        Args:
          cost_PA: the costs by prompt, measured at `current_K`.
          jacobian_PAK: their derivatives by the weights.
        """
        self._rounds.append(
            _Round(
                weights_K=self.current_K,
                cost_A=cost_PA.mean(axis=0),
                jacobian_AK=jacobian_PAK.mean(axis=0),
                num_prompts=len(cost_PA),
            )
        )
        radius = self._radius * _SHRINK ** (len(self._rounds) - 1)
        centre_K = self._path[-1]
        cost_A, jacobian_AK = self._model(centre_K)
        moved_K, self._multiplier_A = minimax_step(
            centre_K,
            cost_A,
            jacobian_AK,
            radius=max(radius, min(_LEAST_RADIUS, self._radius)),
            min_weight=self._min_weight,
        )
        self._path.append(moved_K)

    def _model(self, centre_K: Floats) -> tuple[Floats, Floats]:
        """(costs, Jacobian) at `centre_K` of the pooled linear models of all rounds."""
        distance_T = np.array(
            [np.abs(each.weights_K - centre_K).sum() / 2 for each in self._rounds]
        )
        share_T = np.exp(-0.5 * (distance_T / _POOLED_WITHIN) ** 2)
        share_T *= [each.num_prompts for each in self._rounds]
        share_T /= share_T.sum()
        jacobian_AK = np.tensordot(share_T, [each.jacobian_AK for each in self._rounds], axes=1)
        cost_TA = [each.cost_A + jacobian_AK @ (centre_K - each.weights_K) for each in self._rounds]
        return np.tensordot(share_T, cost_TA, axes=1), jacobian_AK

    @property
    def path_TK(self) -> Floats:
        """The weights of every round, the starting point first and the answer last, [T + 1, K]."""
        return np.stack(self._path)

    @property
    def cost_TA(self) -> Floats:
        """The costs measured in every round, [T, A]."""
        return np.stack([each.cost_A for each in self._rounds])

    @property
    def weights_K(self) -> Floats:
        """The answer."""
        return self._path[-1]

    @property
    def multiplier_A(self) -> Floats:
        """The multipliers lambda of the last step: the costs that the answer is bound by."""
        return self._multiplier_A


class OnPolicyFit(PooledSteps):
    """The fit of the least largest KL; its costs are the KLs, in nats a response."""

    def step(self, measured: Measured) -> None:
        """Moves the weights by one round.

        Args:
          measured: fresh responses of the mixture at `current_K`.
        """
        self.move(measured.kl_per_prompt(), measured.jacobian_per_prompt())

    @property
    def kl_TK(self) -> Floats:
        """KL(mixture || policy) measured in every round, in nats a response, [T, K]."""
        return self.cost_TA

    @property
    def multiplier_K(self) -> Floats:
        """The multipliers by policy."""
        return self.multiplier_A
