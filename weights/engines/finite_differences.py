"""The change of log p(y) with the weights where parameters are mixed, by finite differences.

Of mixed logits d log p(y) / dw_j has a closed form in figures that the engine measures
(prefmix.weights.fit.token_level.on_policy). The mean of parameters is a model of its own, whose
derivative would take a pass backwards, and an engine that serves has none. But it scores the same
responses at weights nearby, which is exact and costs a prefill. With l(h) = log p(y) at
w + h (e_j - w):

    D_j = dl / dh at 0 = ( l(h) - l(-h) ) / 2h                   error O(h^2)
    D_j = ( 4 l(h) - l(2h) - 3 l(0) ) / 2h                       where w_j is too small for -h

D_j is d log p / dw_j less a number that all j share, which has no effect on a fit: weights move
along the simplex. As sum_j w_j D_j = 0, the K - 1 directions of all policies but the heaviest are
enough. Responses are drawn once, so noise of sampling is no part of the difference.

Shapes: N responses, K policies, S = 2 (n - 1) other weights for n policies with weight.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEP = 0.05
"""h, the share of the way to all weight on one policy."""


class Differences:
    """The weights near some weights at which responses are to be scored, and what follows."""

    def __init__(self, weights_K: Floats) -> None:
        """Args:
        weights_K: w on the simplex. Policies without weight get no derivative.
        """
        self._weights_K = weights_K
        self._heaviest = int(weights_K.argmax())
        self._others = [
            policy for policy in np.flatnonzero(weights_K > 0).tolist() if policy != self._heaviest
        ]

    @property
    def points_SK(self) -> Floats:
        """The other weights, all on the simplex; two for each policy but the heaviest."""
        points = [
            self._weights_K + step * (np.eye(len(self._weights_K))[policy] - self._weights_K)
            for policy in self._others
            for step in self._steps(policy)
        ]
        return np.reshape(points, (-1, len(self._weights_K))).clip(min=0.0)

    def scores(self, logprob_N: Floats, shifted_SN: Floats) -> Floats:
        """D_j of every response, [N, K]; NaN for policies without weight.

        Args:
          logprob_N: log p(y) at the weights themselves.
          shifted_SN: log p(y) at `points_SK`.
        """
        found_NK = np.full((len(logprob_N), len(self._weights_K)), np.nan)
        found_NK[:, self._heaviest] = 0.0
        for place, policy in enumerate(self._others):
            first_N, second_N = shifted_SN[2 * place : 2 * place + 2]
            if self._is_central(policy):
                found_NK[:, policy] = (first_N - second_N) / (2 * STEP)
            else:
                found_NK[:, policy] = (4 * first_N - second_N - 3 * logprob_N) / (2 * STEP)
            share = self._weights_K[policy] / self._weights_K[self._heaviest]
            found_NK[:, self._heaviest] -= share * found_NK[:, policy]
        return found_NK

    def _steps(self, policy: int) -> tuple[float, float]:
        return (STEP, -STEP) if self._is_central(policy) else (STEP, 2 * STEP)

    def _is_central(self, policy: int) -> bool:
        return bool((1 + STEP) * self._weights_K[policy] >= STEP)
