"""The certificate of sequence-level weights: how far they can be trusted, in numbers and in words.

At the optimum of F, KL(mixture || pi_k) is equal for all active policies and smaller for inactive
ones, and F = -sum_k w_k KL_k. The gap max_k KL_k - sum_k w_k KL_k is therefore 0 at the optimum. It
is an upper bound on how much F could still fall, because F is convex.

With a floor m under every weight, only the weight above it can move: the bound is then
(1 - K m) max_k KL_k - sum_k (w_k - m) KL_k. It is 0 if all policies above the floor are equally
far; policies at the floor may be nearer.

On the responses that the weights were fitted to, the gap is 0 by construction, whatever the truth.
So it is cross-fitted: prompts are split into folds, and each fold's KLs are measured at weights
fitted to the other folds. KLs from m responses are biased by O(1/m); twice those of all responses
minus the mean of those of either half are biased by O(1/m^2) only (`debiased_kl_per_prompt`).

The weights minimise a mean over prompts, so their errors are those of an M-estimator: with H the
Hessian and S the covariance of the prompts' gradients, both on the plane of the weights that are
not at an edge, their covariance is H^-1 S H^-1 / P.

Shapes: P prompts, K policies, A active policies, F folds.
Source: the optimality conditions of prefmix.weights.fit.sequence_level.objective; for the O(1/m)
  bias, Wang et al. 2025 (arXiv 2502.18699), whose m-sample estimator this is; Huber 1967 for the
  errors of weights; Quenouille 1956 for the halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from prefmix.weights.engines.progress import Progress
from prefmix.weights.fit.sequence_level import objective
from prefmix.weights.fit.sequence_level.mirror_descent import Descent, DescentSettings, descend
from prefmix.weights.fit.sequence_level.objective import Floats, Responses
from prefmix.weights.intervals.means import Interval, above_zero, interval_of_largest

ENOUGH_ESS_FRACTION = 0.1
"""Smallest share of effective responses; below it the estimate rests on too few."""
ENOUGH_ESS = 4.0
"""Smallest number of effective responses per prompt, regardless of their share."""
MAX_SPREAD = 0.03
"""Largest difference between the weights of different seeds that counts as settled."""
MAX_BIAS = 0.05
"""Largest correction of a weight for few responses; what is left of the bias is smaller then."""
NUM_FOLDS = 4
_AT_EDGE = 1e-3
"""A weight this little above its floor is at an edge, where it has no error of its own."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The quality of a weight vector under the sequence-level objective; KLs in nats a response."""

    objective: float
    """F(w); for each policy alone it is 0."""
    kl: dict[str, float]
    """KL(mixture || policy) by policy."""
    gap: float
    """Upper bound on how much F could still fall above the floor, on prompts that the weights were
    not fitted to; 0 at the optimum. Of importances that were given, on all prompts."""
    gap_interval: Interval
    """95 % interval of the gap (prefmix.weights.intervals.means)."""
    ess: float
    """Mean effective number of responses a prompt."""
    ess_fraction: float
    """The effective number as a share of the responses sampled."""
    ess_by_length: tuple[dict[str, float], ...]
    """Quartiles of response length: {mean_tokens, prompts, ess_fraction}."""
    m_sweep: tuple[dict[str, Any], ...]
    """The fit repeated with fewer responses a prompt: {responses, weights, objective}, before the
    correction for their number. Empty if nothing was fitted."""
    seed_spread: float
    """Largest difference of any weight between runs of the descent; it says nothing of the error
    that other responses or prompts would bring."""
    weight_error: dict[str, float] | None
    """Standard error of each weight over prompts, with the size of its correction for the number
    of responses; 0 at an edge. None if nothing was fitted."""
    correction: float
    """Largest move of a weight by the correction for the number of responses."""
    verdict: str
    """`trustworthy`, or what to change."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def certify(
    responses: Responses,
    weights_K: Floats,
    *,
    names: Sequence[str],
    runs: Sequence[Descent],
    settings: DescentSettings,
    lengths_PJ: Floats | None = None,
    correction_K: Floats | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Measures the certificate of weights.

    Args:
      responses: the responses that the weights were fitted on.
      weights_K: the weights.
      names: the K policies.
      runs: the fit's restarts, for the spread over seeds; none if the weights were given.
      settings: settings of the fit, for the folds and the m-sweep.
      lengths_PJ: tokens of each response, NaN in the padding.
      correction_K: moves of the weights by `corrected`.
      progress: where progress is shown; None shows nothing.
    """
    progress = progress or Progress(quiet=True)
    floor = settings.min_weight
    kl_PK = debiased_kl_per_prompt(responses, weights_K)
    size_P = objective.effective_sample_size(responses, weights_K)
    if correction_K is None:
        correction_K = np.zeros(len(weights_K))
    error_K = None
    if runs:
        error_K = weight_errors(responses, weights_K, min_weight=floor)
        # The correction is uncertain itself, by no more than its size.
        error_K = np.where(error_K > 0, np.hypot(error_K, correction_K), 0.0)
    if runs:
        lead_PK = _cross_fitted_leads(responses, settings, progress=progress)
    else:
        lead_PK = leads(kl_PK, weights_K, min_weight=floor)
    gap, gap_interval = above_zero(
        interval_of_largest(lead_PK, is_picked=bool(runs), seed=settings.seed)
    )
    ends_RK = np.stack([run.weights_K for run in runs] or [weights_K])
    found = Certificate(
        objective=-float(weights_K @ kl_PK.mean(axis=0)),
        kl=dict(zip(names, kl_PK.mean(axis=0).tolist(), strict=True)),
        gap=gap,
        gap_interval=gap_interval,
        ess=float(size_P.mean()),
        ess_fraction=float((size_P / responses.num_responses_P).mean()),
        ess_by_length=_ess_by_length(responses, weights_K, lengths_PJ),
        m_sweep=_m_sweep(responses, settings, names=names, progress=progress) if runs else (),
        seed_spread=float(np.ptp(ends_RK, axis=0).max()),
        weight_error=None if error_K is None else dict(zip(names, error_K.tolist(), strict=True)),
        correction=float(np.abs(correction_K).max()),
        verdict="",
    )
    return replace(found, verdict=_verdict(found, responses) if runs else "")


def corrected(responses: Responses, weights_K: Floats, settings: DescentSettings) -> Floats:
    """The weights without the O(1/m) part of their bias: twice `weights_K` minus the mean of the
    answers from either half of every prompt's responses.

    Args:
      responses: at least 2 a prompt.
      weights_K: the answer from all responses.
      settings: settings of the fit.
    """
    halves_2K = [descend(half, settings).weights_K for half in responses.halves()]
    floor = settings.min_weight
    free_K = np.maximum(2 * weights_K - np.mean(halves_2K, axis=0) - floor, 0.0)
    slope = 1 - len(weights_K) * floor
    total = free_K.sum()
    moved_K: Floats = floor + (free_K * (slope / total) if total > 0 else free_K)
    return moved_K


def debiased_kl_per_prompt(responses: Responses, weights_K: Floats) -> Floats:
    """KL(mixture || policy k) by prompt, in nats, [P, K], biased by O(1/m^2) instead of O(1/m).

    Those of single prompts may be negative; means over prompts are what it is for.
    """
    kl_PK = objective.kl_per_prompt(responses, weights_K)
    if (responses.num_responses_P < 2).any():
        return kl_PK
    first_PK, second_PK = (objective.kl_per_prompt(h, weights_K) for h in responses.halves())
    debiased_PK: Floats = 2 * kl_PK - (first_PK + second_PK) / 2
    return debiased_PK


def leads(kl_PK: Floats, weights_K: Floats, *, min_weight: float = 0.0) -> Floats:
    """Each policy's lead over the weighted mean, by prompt, [P, K]; the largest mean is the gap.

    Args:
      kl_PK: KL(mixture || policy k) by prompt, in nats.
      weights_K: the mixture's weights.
      min_weight: floor of every weight; only the weight above it counts.
    """
    slope = 1 - len(weights_K) * min_weight
    lead_PK: Floats = slope * kl_PK - (kl_PK @ (weights_K - min_weight))[:, None]
    return lead_PK


def weight_errors(responses: Responses, weights_K: Floats, *, min_weight: float = 0.0) -> Floats:
    """Standard errors of fitted weights over prompts, [K]; 0 at an edge.

    Args:
      responses: the responses that they were fitted on.
      weights_K: the fitted weights.
      min_weight: floor of every weight.
    """
    error_K = np.zeros(len(weights_K))
    active_A = np.flatnonzero(weights_K > min_weight + _AT_EDGE)
    if len(active_A) < 2 or responses.num_prompts < 2:
        return error_K
    _, probability_PJ = objective.tilt(responses, weights_K)
    gradient_PA = objective.gradient_per_prompt(responses, weights_K)[:, active_A]
    centred_PJA = responses.log_ratios_PJK[:, :, active_A] - gradient_PA[:, None, :]
    hessian_AA = np.einsum("pj,pja,pjb->ab", probability_PJ, centred_PJA, centred_PJA)
    hessian_AA /= responses.num_prompts
    # Directions in which the active weights keep their sum.
    plane = np.linalg.svd(np.ones((1, len(active_A))))[2][1:].T
    inverse = plane @ np.linalg.pinv(plane.T @ hessian_AA @ plane) @ plane.T
    covariance_AA = inverse @ np.cov(gradient_PA.T) @ inverse / responses.num_prompts
    error_K[active_A] = np.sqrt(np.maximum(np.diag(covariance_AA), 0.0))
    return error_K


def _cross_fitted_leads(
    responses: Responses, settings: DescentSettings, *, progress: Progress
) -> Floats:
    """Each prompt's leads at weights that were fitted without its fold, as the answer was."""
    num_prompts = responses.num_prompts
    fold_P = np.random.default_rng(settings.seed).permutation(num_prompts) % NUM_FOLDS
    lead_PK = np.empty((num_prompts, responses.num_policies))
    if num_prompts < NUM_FOLDS:
        weights_K = descend(responses, settings).weights_K
        kl_PK = debiased_kl_per_prompt(responses, weights_K)
        return leads(kl_PK, weights_K, min_weight=settings.min_weight)
    with progress.stage("certify", NUM_FOLDS, "folds of prompts").working() as stage:
        for fold in range(NUM_FOLDS):
            others = responses.take(np.flatnonzero(fold_P != fold))
            weights_K = descend(others, settings).weights_K
            if settings.is_corrected and (others.num_responses_P >= 2).all():
                weights_K = corrected(others, weights_K, settings)
            kl_PK = debiased_kl_per_prompt(
                responses.take(np.flatnonzero(fold_P == fold)), weights_K
            )
            lead_PK[fold_P == fold] = leads(kl_PK, weights_K, min_weight=settings.min_weight)
            stage.advance(1)
    return lead_PK


def _ess_by_length(
    responses: Responses, weights_K: Floats, lengths_PJ: Floats | None
) -> tuple[dict[str, float], ...]:
    """The effective share of the responses, by quartile of the prompts' mean response length."""
    if lengths_PJ is None:
        return ()
    length_P = np.nanmean(lengths_PJ, axis=1)
    fraction_P = objective.effective_sample_size(responses, weights_K) / responses.num_responses_P
    rows = []
    for part_P in np.array_split(np.argsort(length_P, kind="stable"), min(4, len(length_P))):
        rows.append(
            {
                "mean_tokens": float(length_P[part_P].mean()),
                "prompts": float(len(part_P)),
                "ess_fraction": float(fraction_P[part_P].mean()),
            }
        )
    return tuple(rows)


def _m_sweep(
    responses: Responses, settings: DescentSettings, *, names: Sequence[str], progress: Progress
) -> tuple[dict[str, Any], ...]:
    """Fits with 1, 2, 4, ... responses a prompt, which show how much O(1/m) bias is left."""
    most = int(responses.num_responses_P.max())
    counts = [2**power for power in range(most.bit_length()) if 2**power < most] + [most]
    rows = []
    with progress.stage("sweep", len(counts), "fits from fewer responses").working() as stage:
        for count in counts:
            fewer = responses.first(count)
            weights_K = descend(fewer, settings).weights_K
            rows.append(
                {
                    "responses": count,
                    "weights": dict(zip(names, weights_K.tolist(), strict=True)),
                    "objective": objective.value(fewer, weights_K),
                }
            )
            stage.advance(1)
    return tuple(rows)


def _verdict(found: Certificate, responses: Responses) -> str:
    """`trustworthy`, or the first thing to change."""
    if found.ess_fraction < ENOUGH_ESS_FRACTION or found.ess < ENOUGH_ESS:
        return (
            f"not trustworthy: the estimate rests on {found.ess:.1f} of "
            f"{responses.num_responses_P.mean():.0f} responses a prompt; sample more responses, "
            "shorter ones, or fit the served mixture (--sampler mixture)"
        )
    if found.seed_spread > MAX_SPREAD:
        return (
            f"not settled: weights of different seeds differ by {found.seed_spread:.3f}; "
            "take more steps, larger batches or more prompts"
        )
    if found.correction > MAX_BIAS:
        return (
            f"biased: {responses.num_responses_P.mean():.0f} responses a prompt move a weight by "
            f"about {found.correction:.3f}; sample more, or fit the served mixture (--sampler "
            "mixture)"
        )
    largest = max(abs(kl) for kl in found.kl.values())
    if found.gap_interval[0] > 0.05 * largest:
        return (
            f"not converged: the KLs still differ by {found.gap:.3f} nats; take more steps or a "
            "larger step size"
        )
    if found.gap_interval[1] > 0.2 * largest:
        return (
            f"not settled: on other prompts F could fall by up to {found.gap_interval[1]:.2f} "
            "nats; fit on more prompts or responses"
        )
    return "trustworthy"
