"""The on-policy fit as it was before minimax steps, for comparison: a damped Newton step a round.

A round goes half of the way to the weights at which all KLs would be equal, if their Jacobian were
minus the covariance of the log-probabilities. That is the Jacobian of the product of whole
sequences, not of the mixture that is served. The answer is the mean of the second half of the
rounds. KLs are means of log ratios.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.token_level.on_policy import Measured

_STEP, _RIDGE, _SUM_ROW = 0.5, 1e-3, 1e3


class DampedNewton:
    """The fit; `current_K`, `step` and `weights_K` as `OnPolicyFit` has them."""

    def __init__(self, *, num_policies: int) -> None:
        self._path = [np.full(num_policies, 1 / num_policies)]
        self._hessian_KK: Floats | None = None

    @property
    def current_K(self) -> Floats:
        return self._path[-1]

    @property
    def weights_K(self) -> Floats:
        path_TK = np.stack(self._path)
        answer_K: Floats = path_TK[1 + (len(path_TK) - 1) // 2 :].mean(axis=0)
        return answer_K

    def step(self, measured: Measured) -> None:
        ratio_NK = measured.policy_logprobs_NK - measured.logprob_N[:, None]
        mean_PK = measured.by_prompt(ratio_NK)
        centred_NK = ratio_NK - mean_PK[measured.prompt_of_N]
        covariance_KK = centred_NK.T @ centred_NK / len(centred_NK)
        if self._hessian_KK is None:
            self._hessian_KK = covariance_KK
        self._hessian_KK = (self._hessian_KK + covariance_KK) / 2
        weights_K = self._path[-1]
        target_K = _target(weights_K, -mean_PK.mean(axis=0), self._hessian_KK)
        self._path.append(weights_K + _STEP * (target_K - weights_K))


def _target(weights_K: Floats, kl_K: Floats, hessian_KK: Floats) -> Floats:
    """The weights that minimise -kl.(v - w) + (v - w) H (v - w) / 2 on the simplex."""
    scale = float(np.trace(hessian_KK)) / len(weights_K)
    value_K, vector_KK = np.linalg.eigh(hessian_KK)
    root_K = np.sqrt(np.maximum(value_K, 0.0) + _RIDGE * scale)
    matrix_KK = root_K[:, None] * vector_KK.T
    wanted_K = matrix_KK @ weights_K + vector_KK.T @ (kl_K - kl_K.mean()) / root_K
    sum_row_1K = np.full((1, len(weights_K)), _SUM_ROW * np.sqrt(scale))
    found_K, _ = nnls(np.vstack([matrix_KK, sum_row_1K]), np.append(wanted_K, sum_row_1K[0, 0]))
    target_K: Floats = found_K / found_K.sum()
    return target_K
