"""Batch stochastic mirror descent on the simplex, with the entropic mirror map.

    w_k <- w_k exp(-eta_t g_k) / Z        on a batch of prompts; the answer is the mean iterate.

Shapes: K policies, T steps, R restarts.
Source: Wang et al. 2025 (arXiv 2502.18699), Algorithm 2; Nemirovski et al. 2009, Robust Stochastic
  Approximation Approach to Stochastic Programming, for step sizes and averaging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from weights.objective import Floats, Indices, Responses, gradient, tilt

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
    num_policies = len(weights_K)
    if num_policies * min_weight > 1:
        raise ValueError(
            f"min_weight is {min_weight} for {num_policies} policies; "
            f"it can be at most {1 / num_policies:.4g}"
        )
    return min_weight + (1 - num_policies * min_weight) * weights_K


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
    report: Callable[[int, Floats], None] | None = None,
) -> Descent:
    """Minimises F over the simplex.

    The floor is a change of variables: v on the whole simplex, w = floor + (1 - K floor) v.

    Args:
      responses: all prompts' responses.
      settings: step sizes, batches, seed.
      start_K: first iterate, in the interior; uniform if None.
      report: called with (step, weights) after each step.
    Raises: ValueError for a floor that K policies cannot all keep.
    """
    num_policies = responses.num_policies
    uniform_K = np.full(num_policies, 1 / num_policies)
    free_K = uniform_K if start_K is None else np.asarray(start_K, dtype=np.float64)
    slope = 1 - num_policies * settings.min_weight
    path_TK = np.empty((settings.num_steps + 1, num_policies))
    path_TK[0] = with_floor(free_K, settings.min_weight)
    unit = curvature(responses, uniform_K)
    if (
        unit <= np.finfo(np.float64).eps
    ):  # the policies cannot be told apart: every weight is as good as any
        path_TK[:] = path_TK[0]
        return Descent(weights_K=path_TK[0], path_TK=path_TK)
    batches = _batches(responses.num_prompts, settings)
    whole = settings.batch_prompts >= responses.num_prompts
    for step in range(1, settings.num_steps + 1):
        batch = responses if whole else responses.take(next(batches))
        decay = np.sqrt(step) if settings.schedule == "sqrt" else 1.0
        free_K = mirror_step(
            free_K,
            slope * gradient(batch, path_TK[step - 1]),
            step_size=settings.step_size / (unit * decay),
        )
        path_TK[step] = with_floor(free_K, settings.min_weight)
        if report is not None:
            report(step, path_TK[step])
    return Descent(weights_K=path_TK[1 + settings.num_steps // 2 :].mean(axis=0), path_TK=path_TK)


def restarts(
    responses: Responses, settings: DescentSettings, *, num_restarts: int
) -> list[Descent]:
    """Runs from `num_restarts` random starting points, the first uniform: F is convex, so runs
    that end apart show noise or a flat optimum, never a local one."""
    rng = np.random.default_rng(settings.seed)
    runs = [descend(responses, settings)]
    for index in range(1, num_restarts):
        start_K = rng.dirichlet(np.ones(responses.num_policies))
        runs.append(
            descend(responses, replace(settings, seed=settings.seed + index), start_K=start_K)
        )
    return runs


def _batches(num_prompts: int, settings: DescentSettings) -> Iterator[Indices]:
    """Endless batches of prompt indices, epoch by epoch."""
    rng = np.random.default_rng(settings.seed)
    size = settings.batch_prompts
    while True:
        order = rng.permutation(num_prompts)
        for begin in range(0, num_prompts - size + 1, size):
            yield order[begin : begin + size]
