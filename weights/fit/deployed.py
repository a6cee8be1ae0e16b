"""The KLs of the mixture that will be served, measured on responses drawn for nothing else.

Shapes: P prompts, K policies, B bootstrap samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefmix.weights.engines.progress import Progress
from prefmix.weights.fit.certificate import bootstrap_means, gap_of_means
from prefmix.weights.fit.objective import Floats
from prefmix.weights.fit.on_policy import log_ratio_per_prompt
from prefmix.weights.fit.score_table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """The served mixture at the fitted weights, measured on fresh responses of its own."""

    kl: dict[str, float]
    """KL(mixture || policy) by policy, in nats a response."""
    kl_interval: dict[str, tuple[float, float]]
    """95 % bootstrap interval of each KL over prompts."""
    gap: float
    """max_k KL_k - sum_k w_k KL_k; with a floor, over the weight above it
    (prefmix.weights.fit.certificate)."""
    gap_interval: tuple[float, float]
    """95 % bootstrap interval of the gap."""
    num_responses: int
    """Responses measured."""
    mean_tokens: float
    """Mean length of the responses, in tokens."""


def measure_deployed(
    table: ScoreTable, weights_K: Floats, *, min_weight: float, progress: Progress
) -> Deployed:
    """Estimates the KLs of the served mixture.

    Args:
      table: responses of the mixture at `weights_K`, scored under every policy.
      weights_K: the mixture's weights.
      min_weight: the floor that the weights were fitted above; 0 for weights that were given.
      progress: where the bootstrap is shown.
    """
    kl_PK = -log_ratio_per_prompt(table.responses())
    kl_K = kl_PK.mean(axis=0)
    kl_BK = bootstrap_means(kl_PK, seed=0, progress=progress)
    gap, gap_interval = gap_of_means(kl_K, kl_BK, weights_K, min_weight=min_weight)
    low_K, high_K = np.quantile(kl_BK, [0.025, 0.975], axis=0)
    intervals = zip(low_K.tolist(), high_K.tolist(), strict=True)
    return Deployed(
        kl=dict(zip(table.names, kl_K.tolist(), strict=True)),
        kl_interval=dict(zip(table.names, intervals, strict=True)),
        gap=gap,
        gap_interval=gap_interval,
        num_responses=len(table.num_tokens_N),
        mean_tokens=float(table.num_tokens_N.mean()),
    )
