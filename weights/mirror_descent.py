"""Batch stochastic mirror descent on the simplex, with the entropic mirror map.

    w_k <- w_k exp(-eta_t g_k) / Z        on a batch of prompts; the answer is the mean iterate.

Shapes: P prompts, J most responses of any prompt, K policies, T steps, R runs, B prompts a batch,
C batches an epoch.
Source: Wang et al. 2025 (arXiv 2502.18699), Algorithm 2; Nemirovski et al. 2009, Robust Stochastic
  Approximation Approach to Stochastic Programming, for step sizes and averaging.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from weights.objective import Floats, Responses, gradient, tilt

Schedule = Literal["sqrt", "constant"]

Advance = Callable[[int], None]

_REPORT_STEPS = 100
"""Steps between two reports of progress."""
_BLOCK_PROMPTS = 1024
"""Prompts that are looked at together where all are, so that it stays in a processor's cache."""
_EXP_REACH = 500.0
"""exp() of a score this far from 0 neither overflows nor vanishes, nor do sums of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DescentSettings:
    """How to descend. Checked when made."""

    num_steps: int = 600
    """T; the first half finds the place, the second is averaged."""
    batch_prompts: int = 64
    """Prompts a step, drawn without replacement epoch by epoch."""
    step_size: float = 4.0
    """In units of 1 / curvature, so that one value suits policies near and far apart. Constant
    steps up to about 2 do not oscillate; decaying ones may begin higher."""
    schedule: Schedule = "sqrt"
    """`sqrt`: step_size / sqrt(t); `constant`: step_size."""
    min_weight: float = 0.0
    """Floor of every weight; the simplex shrinks to w_k >= min_weight."""
    seed: int = 0
    """Seed of the batches."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not (np.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size is {self.step_size}; it must be positive and finite")
        if self.schedule not in ("sqrt", "constant"):
            raise ValueError(f"schedule is {self.schedule!r}; allowed: sqrt, constant")
        if not 0 <= self.min_weight < 1:
            raise ValueError(f"min_weight is {self.min_weight}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Descent:
    """One run: the answer and the way there."""

    weights_K: Floats
    """The mean of the second half of the iterates."""
    path_TK: Floats
    """Every iterate, the starting point first, [T + 1, K]."""


def with_floor(weights_K: Floats, min_weight: float) -> Floats:
    """Moves a point of the simplex into the part where every weight is at least `min_weight`."""
    num_policies = weights_K.shape[-1]
    if num_policies * min_weight > 1:
        raise ValueError(
            f"min_weight is {min_weight} for {num_policies} policies; "
            f"it can be at most {1 / num_policies:.4g}"
        )
    moved_K: Floats = min_weight + (1 - num_policies * min_weight) * weights_K
    return moved_K


def curvature(responses: Responses, weights_K: Floats) -> float:
    """How fast the gradient turns, in nats per unit of weight: the yardstick of step sizes.

    The Hessian of F is the covariance of the log ratios under the mixture; this is its largest
    diagonal entry, centred over policies.
    """
    variance_K = np.zeros(responses.num_policies)
    for begin in range(0, responses.num_prompts, _BLOCK_PROMPTS):
        block = slice(begin, begin + _BLOCK_PROMPTS)
        ratios_PJK = responses.log_ratios_PJK[block]
        part = Responses(log_ratios_PJK=ratios_PJK, log_mass_PJ=responses.log_mass_PJ[block])
        probability_JP = tilt(part, weights_K)[1].T
        # Policies first: sums over responses then run over whole vectors.
        ratios_KJP = np.ascontiguousarray(ratios_PJK.transpose(2, 1, 0))
        ratios_KJP -= ratios_KJP.mean(axis=0)
        weighted_KJP = probability_JP * ratios_KJP
        mean_KP = weighted_KJP.sum(axis=1)
        weighted_KJP *= ratios_KJP
        variance_K += (weighted_KJP.sum(axis=1) - mean_KP**2).sum(axis=1)
    return float(variance_K.max() / responses.num_prompts)


def descend(
    responses: Responses,
    settings: DescentSettings,
    *,
    start_K: Floats | None = None,
) -> Descent:
    """Minimises F over the simplex.

    Args:
      responses: all prompts' responses.
      settings: step sizes, batches, seed.
      start_K: first iterate, in the interior; uniform if None.
    Raises: ValueError for a floor that K policies cannot all keep.
    """
    num_policies = responses.num_policies
    start_RK = np.full((1, num_policies), 1 / num_policies) if start_K is None else start_K[None]
    return descend_together(responses, settings, start_RK)[0]


def restarts(
    responses: Responses,
    settings: DescentSettings,
    *,
    num_restarts: int,
    advance: Advance | None = None,
) -> list[Descent]:
    """Runs from `num_restarts` starting points, the first uniform, the others random; `advance` is
    told of steps taken.

    F is convex: runs that end apart show noise or a flat optimum, never a local one.
    """
    num_policies = responses.num_policies
    rng = np.random.default_rng(settings.seed)
    start_RK = rng.dirichlet(np.ones(num_policies), size=num_restarts)
    start_RK[0] = 1 / num_policies
    return descend_together(responses, settings, start_RK, advance=advance)


def descend_together(
    responses: Responses,
    settings: DescentSettings,
    start_RK: Floats,
    *,
    advance: Advance | None = None,
) -> list[Descent]:
    """Several runs at once, each over the batches in its own order.

    What a step costs is mostly calls, not arithmetic; runs side by side share the calls. The floor
    is a change of variables: v on the whole simplex, w = floor + (1 - K floor) v.
    """
    num_runs, num_policies = start_RK.shape
    path_TRK = np.empty((settings.num_steps + 1, num_runs, num_policies))
    path_TRK[0] = with_floor(start_RK, settings.min_weight)
    unit = curvature(responses, np.full(num_policies, 1 / num_policies))
    if unit <= np.finfo(np.float64).eps:  # linear, as with one response a prompt
        unit = float(np.ptp(gradient(responses, np.full(num_policies, 1 / num_policies))))
    slope = 1 - num_policies * settings.min_weight
    if min(unit, slope) <= np.finfo(np.float64).eps:
        # The policies cannot be told apart, or the floor leaves no choice.
        path_TRK[:] = path_TRK[0]
        return _finished(path_TRK)
    # In v the gradient is slope times that in w, the curvature slope squared times.
    step_size_T = np.full(settings.num_steps, settings.step_size / (slope * unit))
    if settings.schedule == "sqrt":
        step_size_T /= np.sqrt(np.arange(1, settings.num_steps + 1))
    gradients = _BatchGradients(responses, settings, num_runs)
    with np.errstate(divide="ignore"):
        log_free_RK = np.log(start_RK)
    free_RK = np.empty_like(log_free_RK)
    for step, step_size in enumerate(step_size_T.tolist()):
        log_free_RK -= step_size * gradients.at(step, path_TRK[step])
        log_free_RK -= np.maximum.reduce(log_free_RK, axis=1, keepdims=True)
        np.exp(log_free_RK, out=free_RK)
        free_RK *= slope / np.add.reduce(free_RK, axis=1, keepdims=True)
        np.add(free_RK, settings.min_weight, out=path_TRK[step + 1])
        if advance is not None and (step + 1) % _REPORT_STEPS == 0:
            advance(_REPORT_STEPS)
    return _finished(path_TRK)


def _finished(path_TRK: Floats) -> list[Descent]:
    answer_RK = path_TRK[1 + (len(path_TRK) - 1) // 2 :].mean(axis=0)
    return [
        Descent(weights_K=answer_RK[run], path_TK=path_TRK[:, run])
        for run in range(path_TRK.shape[1])
    ]


class _BatchGradients:
    """Gradients of all runs, each on a batch of its own, step after step.

    Batches are cut from a shuffled epoch; run r starts at its r-th part, so that runs see different
    ones. A step is a handful of calls into buffers that are there already: at the default sizes
    calls and new memory would cost more than the arithmetic.
    """

    def __init__(self, responses: Responses, settings: DescentSettings, num_runs: int) -> None:
        ratios_PJK = responses.log_ratios_PJK
        num_prompts, longest, num_policies = ratios_PJK.shape
        size = min(settings.batch_prompts, num_prompts)
        num_batches = num_prompts // size
        self._responses = responses
        self._is_ragged = not np.isfinite(responses.log_mass_PJ).all()
        # Scores are means of log ratios; near 0 they need no maximum taken out before exp().
        self._is_wide = max(ratios_PJK.max(), -ratios_PJK.min()) > _EXP_REACH
        self._rng = np.random.default_rng(settings.seed)
        offset_R = np.arange(num_runs) * num_batches // num_runs
        self._batch_of_CR = (np.arange(num_batches)[:, None] + offset_R) % num_batches
        self._epoch_CRB = np.empty((num_batches, num_runs, size), dtype=np.intp)
        self._taken_RBJK = np.empty((num_runs, size, longest, num_policies))
        # Prompts last: sums over responses then run over whole vectors.
        self._ratios_RKJB = np.empty((num_runs, num_policies, longest, size))
        self._score_RJB = np.empty((num_runs, longest, size))
        self._share_R1B = np.empty((num_runs, 1, size))
        # The same buffers, seen as products and copies want them.
        self._taken_RKJB = self._taken_RBJK.transpose(0, 3, 2, 1)
        self._ratios_RKN = self._ratios_RKJB.reshape(num_runs, num_policies, -1)
        self._score_R1N = self._score_RJB.reshape(num_runs, 1, -1)
        self._score_RN1 = self._score_RJB.reshape(num_runs, -1, 1)

    def at(self, step: int, weights_RK: Floats) -> Floats:
        """The gradient at each run's weights on its batch of this step, [R, K].

        Steps are asked for in order.
        """
        batch = step % len(self._epoch_CRB)
        if batch == 0:
            self._shuffle()
        prompts_RB = self._epoch_CRB[batch]
        # "clip": with its default mode, take would first fill a buffer of its own.
        ratios_PJK = self._responses.log_ratios_PJK
        ratios_PJK.take(prompts_RB, axis=0, out=self._taken_RBJK, mode="clip")
        np.copyto(self._ratios_RKJB, self._taken_RKJB)
        score_RJB, share_R1B = self._score_RJB, self._share_R1B
        np.matmul(weights_RK[:, None, :], self._ratios_RKN, out=self._score_R1N)
        if self._is_ragged:
            score_RJB += self._responses.log_mass_PJ[prompts_RB].transpose(0, 2, 1)
        if self._is_wide:
            score_RJB -= score_RJB.max(axis=1, keepdims=True)
        np.exp(score_RJB, out=score_RJB)
        np.add.reduce(score_RJB, axis=1, keepdims=True, out=share_R1B)
        np.divide(1 / share_R1B.shape[2], share_R1B, out=share_R1B)
        score_RJB *= share_R1B
        gradient_RK: Floats = np.matmul(self._ratios_RKN, self._score_RN1)[:, :, 0]
        return gradient_RK

    def _shuffle(self) -> None:
        num_batches, _, size = self._epoch_CRB.shape
        order = self._rng.permutation(self._responses.num_prompts)[: num_batches * size]
        self._epoch_CRB[:] = order.reshape(num_batches, size)[self._batch_of_CR]
