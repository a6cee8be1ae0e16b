"""The certificate of fitted weights: how far they can be trusted, in numbers and then in words.

At the optimum KL(mixture || pi_k) is equal for all active policies and smaller for inactive ones,
and F = -sum_k w_k KL_k. The gap max_k KL_k - sum_k w_k KL_k is therefore 0 at the optimum. It is an
upper bound on how much F could still fall, because F is convex.

With a floor m under every weight, only the weight above it can move: the bound is then
(1 - K m) max_k KL_k - sum_k (w_k - m) KL_k. It is 0 if all policies above the floor are equally
far; policies at the floor may be nearer.

Shapes: P prompts, K policies, B bootstrap samples.
Source: the optimality conditions of prefmix.weights.fit.objective; for the O(1/m) bias, Wang et al.
  2025 (arXiv 2502.18699), whose m-sample estimator this is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from prefmix.weights.engines.progress import Progress
from prefmix.weights.fit import objective
from prefmix.weights.fit.mirror_descent import Descent, DescentSettings, descend
from prefmix.weights.fit.objective import Floats, Responses

ENOUGH_ESS_FRACTION = 0.1
"""Smallest share of effective responses; below it the estimate rests on too few."""
ENOUGH_ESS = 4.0
"""Smallest number of effective responses per prompt, regardless of their share."""
MAX_SPREAD = 0.03
"""Largest difference between the weights of different seeds that counts as settled."""
NUM_BOOTSTRAP = 500
_BLOCK = 20
"""Bootstrap samples a block, which limits memory; a divisor of NUM_BOOTSTRAP."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The quality of a weight vector under the sequence-level objective; KLs in nats a response."""

    objective: float
    """F(w); for each policy alone it is 0."""
    kl: dict[str, float]
    """KL(mixture || policy) by policy."""
    gap: float
    """Upper bound on how much F could still fall above the floor; 0 at the optimum."""
    gap_interval: tuple[float, float]
    """95 % bootstrap interval of the gap over prompts."""
    ess: float
    """Mean effective number of responses a prompt."""
    ess_fraction: float
    """The effective number as a share of the responses sampled."""
    ess_by_length: tuple[dict[str, float], ...]
    """Quartiles of response length: {mean_tokens, prompts, ess_fraction}."""
    m_sweep: tuple[dict[str, Any], ...]
    """The fit repeated with fewer responses a prompt: {responses, weights, objective}."""
    seed_spread: float
    """Largest difference of any weight between seeds."""
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
    progress: Progress | None = None,
) -> Certificate:
    """Measures the certificate of fitted weights.

    Args:
      responses: the responses that the weights were fitted on.
      weights_K: the fitted weights.
      names: the K policies.
      runs: the fit's restarts, for the spread over seeds.
      settings: settings of the fit, for the m-sweep.
      lengths_PJ: tokens of each response, NaN in the padding.
      progress: where progress is shown; None shows nothing.
    """
    progress = progress or Progress(quiet=True)
    kl_PK = objective.kl_per_prompt(responses, weights_K)
    kl_BK = bootstrap_means(kl_PK, seed=settings.seed, progress=progress)
    gap, gap_interval = gap_of_means(
        kl_PK.mean(axis=0), kl_BK, weights_K, min_weight=settings.min_weight
    )
    size_P = objective.effective_sample_size(responses, weights_K)
    ends_RK = np.stack([run.weights_K for run in runs])
    found = Certificate(
        objective=objective.value(responses, weights_K),
        kl=dict(zip(names, kl_PK.mean(axis=0).tolist(), strict=True)),
        gap=gap,
        gap_interval=gap_interval,
        ess=float(size_P.mean()),
        ess_fraction=float((size_P / responses.num_responses_P).mean()),
        ess_by_length=_ess_by_length(responses, weights_K, lengths_PJ),
        m_sweep=_m_sweep(responses, settings, names=names, progress=progress),
        seed_spread=float(np.ptp(ends_RK, axis=0).max()),
        verdict="",
    )
    return replace(found, verdict=_verdict(found, responses))


def bootstrap_means(kl_PK: Floats, *, seed: int, progress: Progress) -> Floats:
    """The mean KLs of bootstrap samples of the prompts, [B, K].

    Args:
      kl_PK: KL(mixture || policy k) by prompt, in nats.
      seed: seed of the bootstrap.
      progress: where progress is shown.
    """
    rng = np.random.default_rng(seed)
    num_prompts, num_policies = kl_PK.shape
    share_P = np.full(num_prompts, 1 / num_prompts)
    kl_BK = np.empty((NUM_BOOTSTRAP, num_policies))
    with progress.stage("certify", NUM_BOOTSTRAP, "bootstrap samples").working() as stage:
        for begin in range(0, NUM_BOOTSTRAP, _BLOCK):
            # A bootstrap of means needs only the number of times that each prompt is drawn.
            counts_BP = rng.multinomial(num_prompts, share_P, _BLOCK)
            kl_BK[begin : begin + _BLOCK] = counts_BP @ kl_PK / num_prompts
            stage.advance(_BLOCK)
    return kl_BK


def gap_of_means(
    kl_K: Floats, kl_BK: Floats, weights_K: Floats, *, min_weight: float = 0.0
) -> tuple[float, tuple[float, float]]:
    """The equaliser gap and its 95 % bootstrap interval.

    A maximum of noisy means is biased upwards. The bootstrap estimates this bias, and the interval
    is shifted down by it, but not below 0: no gap is negative.

    Args:
      kl_K: KL(mixture || policy k), in nats.
      kl_BK: the same of bootstrap samples.
      weights_K: the mixture's weights.
      min_weight: floor of every weight; only the weight above it counts.
    """
    free_K = weights_K - min_weight
    slope = 1 - len(weights_K) * min_weight
    gap_B = slope * kl_BK.max(axis=1) - kl_BK @ free_K
    gap = max(0.0, float(slope * kl_K.max() - free_K @ kl_K))
    low, high = np.quantile(gap_B, [0.025, 0.975]) - (gap_B.mean() - gap)
    return gap, (max(0.0, float(low)), float(high))


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
    fewest = int(responses.num_responses_P.min())
    if fewest == 1:
        return (
            "not trustworthy: some prompts have a single response, which makes the objective "
            "linear and the answer a vertex; sample at least 16 responses a prompt"
        )
    if found.ess_fraction < ENOUGH_ESS_FRACTION or found.ess < ENOUGH_ESS:
        return (
            f"not trustworthy: the estimate rests on {found.ess:.1f} of "
            f"{responses.num_responses_P.mean():.0f} responses a prompt; sample more responses, "
            "shorter ones, or fit with --sampler mixture"
        )
    if found.seed_spread > MAX_SPREAD:
        return (
            f"not settled: weights of different seeds differ by {found.seed_spread:.3f}; "
            "take more steps, larger batches or more prompts"
        )
    drift = _drift(found.m_sweep)
    if drift > 2 * MAX_SPREAD:
        return (
            f"biased: half of the responses move a weight by {drift:.3f}; "
            "sample more responses a prompt"
        )
    if found.gap_interval[0] > 0.05 * max(abs(kl) for kl in found.kl.values()):
        return (
            f"not converged: the KLs still differ by {found.gap:.3f} nats; take more steps or a "
            "larger step size"
        )
    return "trustworthy"


def _drift(m_sweep: Sequence[dict[str, Any]]) -> float:
    """The largest move of a weight in the last doubling of the responses."""
    if len(m_sweep) < 2:
        return 0.0
    half, full = (row["weights"] for row in m_sweep[-2:])
    return float(max(abs(full[name] - half[name]) for name in full))
