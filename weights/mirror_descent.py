"""Batch stochastic mirror descent on the simplex, with the entropic mirror map.

    w_k <- w_k exp(-eta_t g_k) / Z        on a batch of prompts; the answer is the mean iterate.

Shapes: P prompts, J most responses of any prompt, K policies, T steps, R runs, B prompts a batch,
C batches an epoch.
Source: Wang et al. 2025 (arXiv 2502.18699), Algorithm 2; Nemirovski et al. 2009, Robust Stochastic
  Approximation Approach to Stochastic Programming, for step sizes and averaging.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from weights.objective import Floats, Responses, gradient, tilt

Schedule = Literal["sqrt", "constant"]


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


def mirror_step(weights_K: Floats, gradient_K: Floats, *, step_size: float) -> Floats:
    """One entropic mirror step; stays on the simplex and keeps zeros at zero.

    Args:
      weights_K: a point of the simplex.
      gradient_K: in nats; a common shift of its entries changes nothing.
      step_size: positive, in 1/nats.
    """
    with np.errstate(divide="ignore"):
        log_weights_K = np.log(weights_K) - step_size * gradient_K
    # Zeros stay -inf and fall out; the largest is finite because the weights sum to 1.
    new_weights_K: Floats = np.exp(log_weights_K - log_weights_K.max())
    new_weights_K /= new_weights_K.sum()
    return new_weights_K


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
    _, probability_PJ = tilt(responses, weights_K)
    centred_PJK = responses.log_ratios_PJK - responses.log_ratios_PJK.mean(axis=2, keepdims=True)
    mean_PK = np.einsum("pj,pjk->pk", probability_PJ, centred_PJK)
    square_PK = np.einsum("pj,pjk->pk", probability_PJ, centred_PJK**2)
    return float((square_PK - mean_PK**2).mean(axis=0).max())


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
    responses: Responses, settings: DescentSettings, *, num_restarts: int
) -> list[Descent]:
    """Runs from `num_restarts` starting points, the first uniform, the others random.

    F is convex: runs that end apart show noise or a flat optimum, never a local one.
    """
    num_policies = responses.num_policies
    rng = np.random.default_rng(settings.seed)
    start_RK = rng.dirichlet(np.ones(num_policies), size=num_restarts)
    start_RK[0] = 1 / num_policies
    return descend_together(responses, settings, start_RK)


def descend_together(
    responses: Responses, settings: DescentSettings, start_RK: Floats
) -> list[Descent]:
    """Several runs at once, each over the batches in its own order.

    What a step costs is mostly calls, not arithmetic; runs side by side share the calls. The floor
    is a change of variables: v on the whole simplex, w = floor + (1 - K floor) v.
    """
    num_runs, num_policies = start_RK.shape
    path_TRK = np.empty((settings.num_steps + 1, num_runs, num_policies))
    path_TRK[0] = with_floor(start_RK, settings.min_weight)
    unit = curvature(responses, np.full(num_policies, 1 / num_policies))
    if unit == 0:  # linear, as with one response a prompt
        unit = float(np.ptp(gradient(responses, np.full(num_policies, 1 / num_policies))))
    if unit <= np.finfo(np.float64).eps:
        # The policies cannot be told apart: every weight is as good as any.
        path_TRK[:] = path_TRK[0]
        return _finished(path_TRK)
    slope = 1 - num_policies * settings.min_weight
    step_size_T = np.full(settings.num_steps, settings.step_size * slope / unit)
    if settings.schedule == "sqrt":
        step_size_T /= np.sqrt(np.arange(1, settings.num_steps + 1))
    with np.errstate(divide="ignore"):
        log_free_RK = np.log(start_RK)
    for step, gradient_RK in enumerate(_gradients(responses, settings, path_TRK)):
        log_free_RK -= step_size_T[step] * gradient_RK
        log_free_RK -= log_free_RK.max(axis=1, keepdims=True)
        free_RK = np.exp(log_free_RK)
        free_RK /= free_RK.sum(axis=1, keepdims=True)
        path_TRK[step + 1] = settings.min_weight + slope * free_RK
    return _finished(path_TRK)


def _finished(path_TRK: Floats) -> list[Descent]:
    answer_RK = path_TRK[1 + (len(path_TRK) - 1) // 2 :].mean(axis=0)
    return [
        Descent(weights_K=answer_RK[run], path_TK=path_TRK[:, run])
        for run in range(path_TRK.shape[1])
    ]


def _gradients(
    responses: Responses, settings: DescentSettings, path_TRK: Floats
) -> Iterator[Floats]:
    """The gradient at each run's latest iterate on its next batch, [R, K], step by step."""
    num_runs = path_TRK.shape[1]
    for step, (ratios_RKJB, log_mass_RJB) in zip(
        range(settings.num_steps), _batches(responses, settings, num_runs), strict=False
    ):
        runs, policies, longest, size = ratios_RKJB.shape
        flat_RKN = ratios_RKJB.reshape(runs, policies, longest * size)
        score_RJB = (path_TRK[step][:, None, :] @ flat_RKN).reshape(runs, longest, size)
        if log_mass_RJB is not None:
            score_RJB += log_mass_RJB
        score_RJB -= score_RJB.max(axis=1, keepdims=True)
        np.exp(score_RJB, out=score_RJB)
        score_RJB /= score_RJB.sum(axis=1, keepdims=True)
        yield (flat_RKN @ score_RJB.reshape(runs, longest * size, 1))[:, :, 0] / size


def _batches(
    responses: Responses, settings: DescentSettings, num_runs: int
) -> Iterator[tuple[Floats, Floats | None]]:
    """Endless batches: (log ratios [R, K, J, B], log mass [R, J, B] or None where none is ragged).

    An epoch is shuffled and cut once, prompts last so that sums over responses run over whole
    vectors; run r starts at the r-th part of the epoch, so that runs see different batches.
    """
    rng = np.random.default_rng(settings.seed)
    size = min(settings.batch_prompts, responses.num_prompts)
    num_batches = responses.num_prompts // size
    ratios_KJP = np.ascontiguousarray(responses.log_ratios_PJK.transpose(2, 1, 0))
    log_mass_JP = responses.log_mass_PJ.T
    is_ragged = bool(np.ptp(log_mass_JP[np.isfinite(log_mass_JP)]) or np.isinf(log_mass_JP).any())
    offset_R = np.arange(num_runs) * num_batches // num_runs
    policies, longest, _ = ratios_KJP.shape
    while True:
        order = rng.permutation(responses.num_prompts)[: num_batches * size]
        cut = (longest, num_batches, size)
        ratios = ratios_KJP[:, :, order].reshape(policies, *cut).transpose(2, 0, 1, 3)
        ratios_CKJB = np.ascontiguousarray(ratios)
        mass_CJB = None
        if is_ragged:
            mass_CJB = np.ascontiguousarray(log_mass_JP[:, order].reshape(cut).transpose(1, 0, 2))
        for batch in range(num_batches):
            chosen_R = (batch + offset_R) % num_batches
            yield ratios_CKJB[chosen_R], None if mass_CJB is None else mass_CJB[chosen_R]
