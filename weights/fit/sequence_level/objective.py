"""The objective F that weights are fitted to, computed from sequence log-probabilities alone.

    F(w) = E_x log E_{y ~ proposal} prod_k exp(l_k(x, y))^{w_k}

With l_k = log pi_k(y|x) - log proposal(y|x) this is log sum_y prod_k pi_k(y|x)^{w_k}: on the
simplex the reference policy is only the proposal and drops out of F. F is convex (a log-sum-exp of
linear terms), at most 0, and 0 at every vertex, so for policies that differ no vertex is ever
optimal; its minimum is the max-min mixture. A reward and a KL coefficient beta define a policy
proportional to pi_0 e^(reward / beta), whose l_k is reward / beta - log E_{pi_0} e^(reward / beta)
(`Responses.normalised`). Nothing here needs autograd: the gradient is a weighted mean.

Estimates from m responses are biased by O(1/m) towards the vertices; see `effective_sample_size`.

Shapes: P prompts, J most responses of any prompt, K policies.
Source: Wang et al. 2025, MPO: An Efficient Post-Processing Framework for Mixing Diverse Preference
  Alignment (arXiv 2502.18699), Algorithm 2; the closed forms are derived here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Responses:
    """Log ratios of sampled responses, grouped by prompt and padded to J responses."""

    log_ratios_PJK: Floats
    """l_k of each response; 0 in the padding."""
    log_mass_PJ: Floats
    """Log of each response's share of its prompt: -log m, or -inf in the padding."""
    is_normalised: bool = False
    """True if each policy's probability ratios average 1 over a prompt's responses, as those of
    policies that are known by their rewards only; parts of the responses are normalised anew."""

    @property
    def num_prompts(self) -> int:
        """P."""
        return len(self.log_ratios_PJK)

    @property
    def num_policies(self) -> int:
        """K."""
        return int(self.log_ratios_PJK.shape[2])

    @property
    def num_responses_P(self) -> NDArray[np.int64]:
        """Number of responses of each prompt, [P]."""
        counts_P: NDArray[np.int64] = np.isfinite(self.log_mass_PJ).sum(axis=1)
        return counts_P

    def take(self, prompts: Indices) -> Responses:
        """The responses of some prompts, repeats allowed."""
        return replace(
            self,
            log_ratios_PJK=self.log_ratios_PJK[prompts],
            log_mass_PJ=self.log_mass_PJ[prompts],
        )

    def first(self, num_responses: int) -> Responses:
        """The first responses of every prompt, at most `num_responses`, for an m-sweep."""
        return self._picked(np.arange(self.log_mass_PJ.shape[1]) < num_responses)

    def halves(self) -> tuple[Responses, Responses]:
        """The first and the second half of every prompt's responses, of which each has at least 2.

        An odd one is in the second half.
        """
        place_J = np.arange(self.log_mass_PJ.shape[1])
        is_first_PJ = place_J < self.num_responses_P[:, None] // 2
        return self._picked(is_first_PJ), self._picked(~is_first_PJ)

    def normalised(self) -> Responses:
        """The same with log ratios of which each policy's exponentials average 1 over a prompt."""
        total_PK = logsumexp(self.log_ratios_PJK + self.log_mass_PJ[:, :, None], axis=1)
        kept_PJ1 = np.isfinite(self.log_mass_PJ)[:, :, None]
        return replace(
            self,
            log_ratios_PJK=np.where(kept_PJ1, self.log_ratios_PJK - total_PK[:, None, :], 0.0),
            is_normalised=True,
        )

    def _picked(self, is_picked_PJ: NDArray[np.bool_]) -> Responses:
        """The picked responses of every prompt, moved to the front."""
        kept_PJ = np.isfinite(self.log_mass_PJ) & is_picked_PJ
        count_P1 = kept_PJ.sum(axis=1, keepdims=True)
        order_PJ = np.argsort(~kept_PJ, axis=1, kind="stable")[:, : count_P1.max()]
        ratios_PJK = np.take_along_axis(self.log_ratios_PJK, order_PJ[:, :, None], axis=1)
        inside_PJ = np.arange(order_PJ.shape[1]) < count_P1
        picked = replace(
            self,
            log_ratios_PJK=np.where(inside_PJ[:, :, None], ratios_PJK, 0.0),
            log_mass_PJ=np.where(inside_PJ, -np.log(count_P1), -np.inf),
        )
        return picked.normalised() if self.is_normalised else picked


def from_flat(log_ratios_NK: Floats, prompt_of_N: NDArray[np.int64]) -> Responses:
    """Groups responses by prompt.

    Args:
      log_ratios_NK: l_k of each response.
      prompt_of_N: prompt of each response, 0 .. P-1; each at least once, in any order.
    """
    order = np.argsort(prompt_of_N, kind="stable")
    counts_P = np.bincount(prompt_of_N)
    num_prompts, longest = len(counts_P), int(counts_P.max())
    column_N = np.arange(len(order)) - np.repeat(np.cumsum(counts_P) - counts_P, counts_P)
    row_N = prompt_of_N[order]
    log_ratios_PJK = np.zeros((num_prompts, longest, log_ratios_NK.shape[1]))
    log_ratios_PJK[row_N, column_N] = log_ratios_NK[order]
    log_mass_PJ = np.full((num_prompts, longest), -np.inf)
    log_mass_PJ[row_N, column_N] = -np.log(counts_P)[row_N]
    return Responses(log_ratios_PJK=log_ratios_PJK, log_mass_PJ=log_mass_PJ)


def tilt(responses: Responses, weights_K: Floats) -> tuple[Floats, Floats]:
    """Re-weights each prompt's responses from the proposal to the mixture at `weights_K`.

    Returns: (log of each prompt's normaliser, [P]; probabilities of the responses, [P, J]).
    """
    scores_PJ = responses.log_ratios_PJK @ weights_K
    scores_PJ += responses.log_mass_PJ
    highest_P1 = scores_PJ.max(axis=1, keepdims=True)
    scores_PJ -= highest_P1
    probability_PJ: Floats = np.exp(scores_PJ, out=scores_PJ)
    total_P1 = probability_PJ.sum(axis=1, keepdims=True)
    probability_PJ /= total_P1
    return (highest_P1 + np.log(total_P1))[:, 0], probability_PJ


def value(responses: Responses, weights_K: Floats) -> float:
    """F(w), in nats."""
    return float(tilt(responses, weights_K)[0].mean())


def gradient_per_prompt(responses: Responses, weights_K: Floats) -> Floats:
    """dF/dw_k by prompt: the mean log ratio of each policy under the mixture, [P, K]."""
    _, probability_PJ = tilt(responses, weights_K)
    mean_PK: Floats = np.einsum("pj,pjk->pk", probability_PJ, responses.log_ratios_PJK)
    return mean_PK


def gradient(responses: Responses, weights_K: Floats) -> Floats:
    """dF/dw_k, in nats, [K]. On the simplex a common shift of all entries has no effect."""
    _, probability_PJ = tilt(responses, weights_K)
    # One product over all responses: several times faster than a mean of per-prompt sums.
    num_policies = responses.num_policies
    flat_NK = responses.log_ratios_PJK.reshape(-1, num_policies)
    return probability_PJ.reshape(-1) @ flat_NK / responses.num_prompts


def kl_per_prompt(responses: Responses, weights_K: Floats) -> Floats:
    """KL(mixture || policy k) by prompt, in nats, [P, K].

    The mixture is the sequence-level product. KL_k = sum_i w_i g_i - g_k - log Z, so that
    sum_k w_k KL_k = -log Z.
    """
    log_normaliser_P, _ = tilt(responses, weights_K)
    gradient_PK = gradient_per_prompt(responses, weights_K)
    return (gradient_PK @ weights_K - log_normaliser_P)[:, None] - gradient_PK


def effective_sample_size(responses: Responses, weights_K: Floats) -> Floats:
    """Effective number of responses of each prompt, [P], between 1 and m.

    1 / sum_j a_j^2, with a the mixture's probabilities of the sampled responses.
    """
    _, probability_PJ = tilt(responses, weights_K)
    size_P: Floats = 1.0 / np.square(probability_PJ).sum(axis=1)
    return size_P
