"""Batch stochastic mirror descent on the simplex, with the entropic mirror map.

    w_k <- w_k exp(-eta_t g_k) / Z        on a batch of prompts; the answer is the mean iterate.

Shapes: P prompts, J most responses of any prompt, K policies, T steps, R runs, B prompts a batch,
M = J B responses of a batch, W batches a window, N = W B prompts of a window.
Source: Wang et al. 2025 (arXiv 2502.18699), Algorithm 2; Nemirovski et al. 2009, Robust Stochastic
  Approximation Approach to Stochastic Programming, for step sizes and averaging.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prefmix.weights.fit.sequence_level.objective import Floats, Responses, gradient, tilt

Schedule = Literal["sqrt", "constant"]
Averages = Literal["tail", "all"]

Advance = Callable[[int], None]

_REPORT_STEPS = 100
"""Steps between two reports of progress."""
_YARDSTICK_PROMPTS = 2048
"""Prompts that the curvature is measured on; the unit of step sizes need not be exact."""
_WINDOW_PROMPTS = 2048
"""Prompts that are laid out together; at the default sizes they fit a processor's cache."""
_EXP_REACH = 500.0
"""Scores within this distance from 0 have exponentials that neither overflow nor vanish."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DescentSettings:
    """Steps, batches and floor of a descent. Checked when made."""

    num_steps: int = 600
    """T."""
    batch_prompts: int = 64
    """Prompts a step, drawn without replacement, epoch by epoch."""
    step_size: float = 4.0
    """The first step, in units of 1 / curvature, so that one value suits similar and different
    policies. Constant steps up to about 2 do not oscillate; decaying steps may begin higher."""
    schedule: Schedule = "sqrt"
    """`sqrt`: step_size / sqrt(t); `constant`: step_size."""
    averages: Averages = "tail"
    """`tail`: the answer is the mean of the second half of the iterates; `all`: of all of them."""
    is_corrected: bool = True
    """True takes the O(1/m) part of its bias out of the answer."""
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
        if self.averages not in ("tail", "all"):
            raise ValueError(f"averages is {self.averages!r}; allowed: tail, all")
        if not 0 <= self.min_weight < 1:
            raise ValueError(f"min_weight is {self.min_weight}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Descent:
    """One run of the descent: its answer and its iterates."""

    weights_K: Floats
    """The mean of the second half of the iterates, or of all."""
    path_TK: Floats
    """Every iterate, the starting point first, [T + 1, K]."""


def with_floor(weights_K: Floats, min_weight: float) -> Floats:
    """Maps the simplex onto its part in which every weight is at least `min_weight`."""
    num_policies = weights_K.shape[-1]
    if num_policies * min_weight > 1:
        raise ValueError(
            f"min_weight is {min_weight} for {num_policies} policies; "
            f"it can be at most {1 / num_policies:.4g}"
        )
    moved_K: Floats = min_weight + (1 - num_policies * min_weight) * weights_K
    return moved_K


def curvature(responses: Responses, weights_K: Floats) -> float:
    """The curvature of F, in nats per unit of weight, which is the unit of step sizes.

    The Hessian of F is the covariance of the log ratios under the mixture; the curvature is its
    largest diagonal entry, centred over policies. It is measured on a random part of many prompts.
    """
    part = responses
    if responses.num_prompts > _YARDSTICK_PROMPTS:
        rng = np.random.default_rng(0)
        part = responses.take(rng.integers(responses.num_prompts, size=_YARDSTICK_PROMPTS))
    probability_JP = tilt(part, weights_K)[1].T
    # Policies first: sums over responses then run over whole vectors.
    ratios_KJP = np.ascontiguousarray(part.log_ratios_PJK.transpose(2, 1, 0))
    ratios_KJP -= ratios_KJP.mean(axis=0)
    weighted_KJP = probability_JP * ratios_KJP
    mean_KP = weighted_KJP.sum(axis=1)
    weighted_KJP *= ratios_KJP
    variance_KP = weighted_KJP.sum(axis=1) - mean_KP**2
    return float(variance_KP.mean(axis=1).max())


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
    """Runs from `num_restarts` starting points: the first is uniform, the others are random.

    F is convex: runs that end apart show noise or a flat optimum, never a local one. `advance` is
    called with the number of steps taken since its last call.
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

    A step costs mostly calls, not arithmetic, and runs side by side share the calls. The floor is a
    change of variables: v on the whole simplex, w = floor + (1 - K floor) v.
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
        return _finished(path_TRK, settings.averages)
    # In v the gradient is slope times that in w, the curvature slope squared times.
    step_size_T = np.full(settings.num_steps, settings.step_size / (slope * unit))
    if settings.schedule == "sqrt":
        step_size_T /= np.sqrt(np.arange(1, settings.num_steps + 1))
    gradients = _BatchGradients(responses, settings, num_runs)
    with np.errstate(divide="ignore"):
        log_free_RK = np.log(start_RK)
    free_RK = np.empty_like(log_free_RK)
    weights_RK = path_TRK[0]
    for step, step_size in enumerate(step_size_T.tolist()):
        log_free_RK -= gradients.at(step, weights_RK, scale=step_size)
        log_free_RK -= np.maximum.reduce(log_free_RK, axis=1, keepdims=True)
        np.exp(log_free_RK, out=free_RK)
        weights_RK = path_TRK[step + 1]
        np.divide(free_RK, np.add.reduce(free_RK, axis=1, keepdims=True), out=weights_RK)
        if settings.min_weight:
            weights_RK[:] = with_floor(weights_RK, settings.min_weight)
        if advance is not None and (step + 1) % _REPORT_STEPS == 0:
            advance(_REPORT_STEPS)
    return _finished(path_TRK, settings.averages)


def _finished(path_TRK: Floats, averages: Averages) -> list[Descent]:
    num_steps = len(path_TRK) - 1
    answer_RK = path_TRK[1 + first_averaged(num_steps, averages) :].mean(axis=0)
    return [
        Descent(weights_K=answer_RK[run], path_TK=path_TRK[:, run])
        for run in range(path_TRK.shape[1])
    ]


def first_averaged(num_steps: int, averages: Averages) -> int:
    """The number of steps before those whose iterates are averaged."""
    return 0 if averages == "all" else num_steps // 2


def run_stride(responses: Responses, settings: DescentSettings, num_runs: int) -> int:
    """The distance, in batches, from one run to the next in a window of batches.

    A window has R times as many batches, in the order of the epoch. Every run takes each once.
    """
    size = min(settings.batch_prompts, responses.num_prompts)
    return max(1, min(_WINDOW_PROMPTS, responses.num_prompts) // size // num_runs)


class _BatchGradients:
    """Gradients of all runs, step after step, each run on a batch of its own.

    A shuffled epoch is laid out one window of batches at a time, in the memory order of the matrix
    products. Every run takes each batch of a window once. Runs stand equally far apart in the
    window, so that the batches of a step are one strided view and no batch is copied. A step is a
    handful of calls: at the default sizes more calls would cost more than the arithmetic.
    """

    def __init__(self, responses: Responses, settings: DescentSettings, num_runs: int) -> None:
        ratios_PJK = responses.log_ratios_PJK
        num_prompts, longest, num_policies = ratios_PJK.shape
        size = min(settings.batch_prompts, num_prompts)
        self._stride = run_stride(responses, settings, num_runs)
        self._window = self._stride * num_runs
        self._responses = responses
        self._is_ragged = not np.isfinite(responses.log_mass_PJ).all()
        # Scores are means of log ratios; near 0 they need no maximum taken out before exp().
        self._is_wide = max(ratios_PJK.max(), -ratios_PJK.min()) > _EXP_REACH
        self._rng = np.random.default_rng(settings.seed)
        self._order_N = np.empty(0, dtype=np.intp)
        self._size = size
        self._taken_NJK = np.empty((self._window * size, longest, num_policies))
        # Twice the window, so that the run in front may go past its end: W first, then W again.
        # Prompts last: sums over responses then run over whole vectors.
        self._ratios_WKJB = np.empty((2 * self._window, num_policies, longest, size))
        self._mass_WJB = np.empty((2 * self._window if self._is_ragged else 0, longest, size))
        self._score_RJB = np.empty((num_runs, longest, size))
        self._share_R1B = np.empty((num_runs, 1, size))
        self._ones_1J = np.ones((1, longest))
        # The same buffers in the shapes of the matrix products.
        self._ratios_WKM = self._ratios_WKJB.reshape(2 * self._window, num_policies, -1)
        self._score_R1M = self._score_RJB.reshape(num_runs, 1, -1)

    def at(self, step: int, weights_RK: Floats, *, scale: float) -> Floats:
        """`scale` times the gradient at each run's weights on its batch of this step, [R, K].

        Steps must be asked for in order.
        """
        first = step % self._window
        if first == 0:
            self._fill_window()
        batches = slice(first, first + self._window, self._stride)
        ratios_RKM = self._ratios_WKM[batches]
        score_RJB, share_R1B = self._score_RJB, self._share_R1B
        np.matmul(weights_RK[:, None, :], ratios_RKM, out=self._score_R1M)
        if self._is_ragged:
            score_RJB += self._mass_WJB[batches]
        if self._is_wide:
            score_RJB -= score_RJB.max(axis=1, keepdims=True)
        np.exp(score_RJB, out=score_RJB)
        np.matmul(self._ones_1J, score_RJB, out=share_R1B)
        np.divide(scale / self._size, share_R1B, out=share_R1B)
        score_RJB *= share_R1B
        gradient_RK: Floats = np.vecdot(ratios_RKM, self._score_R1M)
        return gradient_RK

    def _fill_window(self) -> None:
        prompts_N = self._next_prompts()
        # "clip": with its default mode, take would first fill a buffer of its own.
        self._responses.log_ratios_PJK.take(prompts_N, axis=0, out=self._taken_NJK, mode="clip")
        taken_WBJK = self._taken_NJK.reshape(self._window, self._size, *self._taken_NJK.shape[1:])
        self._ratios_WKJB[: self._window] = taken_WBJK.transpose(0, 3, 2, 1)
        self._ratios_WKJB[self._window :] = self._ratios_WKJB[: self._window]
        if self._is_ragged:
            mass_NJ = self._responses.log_mass_PJ[prompts_N]
            mass_WBJ = mass_NJ.reshape(self._window, self._size, -1)
            self._mass_WJB[: self._window] = mass_WBJ.transpose(0, 2, 1)
            self._mass_WJB[self._window :] = self._mass_WJB[: self._window]

    def _next_prompts(self) -> NDArray[np.intp]:
        """The prompts of a window, drawn without replacement, epoch by epoch."""
        while len(self._order_N) < self._window * self._size:
            epoch = self._rng.permutation(self._responses.num_prompts)
            whole = epoch[: len(epoch) // self._size * self._size]
            self._order_N = np.concatenate([self._order_N, whole])
        count = self._window * self._size
        prompts_N, self._order_N = self._order_N[:count], self._order_N[count:]
        return prompts_N
