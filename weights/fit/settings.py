"""The settings of a fit: sampler, how much is drawn, and importances in place of a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from prefmix.mixing.name_list import listed
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.weights.fit.sequence_level.mirror_descent import DescentSettings
from prefmix.weights.fit.sequence_level.objective import Floats

BSMD_STEPS, BSMD_STEP = 2000, 10.0
"""T and c of the founding paper's algorithm, which it leaves open."""

Sampler = Literal["mixture", "sequence", "reference"]


class FitError(ValueError):
    """A fit that cannot run; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """The sampler, and how much is drawn and computed. Checked when made."""

    sampler: Sampler = "mixture"
    """`mixture` fits the mixture that is served; `sequence` fits the sequence-level product, on
    responses of the served mixture at equal weights, `reference` on responses of the reference
    policy, as in the paper."""
    mixing: Mixing = "logits"
    """The way to mix that is deployed: `mixture` fits it, all samplers measure it at the end."""
    importances: dict[str, float] | None = None
    """Fixed user importances (the MORLHF case): the weights are given and only measured."""
    num_responses: int = 16
    """Responses a prompt; few responses bias a sequence-level fit towards vertices."""
    max_tokens: int = 128
    """Length limit of a response, in tokens."""
    num_rounds: int = 6
    """Rounds of the mixture sampler."""
    round_prompts: int = 64
    """Prompts a round of the mixture sampler."""
    round_radius: float = 0.25
    """Largest move of a weight in the first round of the mixture sampler, in (0, 1]."""
    num_restarts: int = 8
    """Runs of the descent from different starts and seeds (sequence-level fits)."""
    descent: DescentSettings = field(default_factory=DescentSettings)
    """Steps, batches and schedule of sequence-level fits; floor and seed of all samplers."""

    def __post_init__(self) -> None:
        if self.sampler not in get_args(Sampler):
            allowed = ", ".join(get_args(Sampler))
            raise FitError(f"sampler is {self.sampler!r}; allowed: {allowed}")
        if self.sampler == "mixture" and not 0 < self.round_radius <= 1:
            raise FitError(
                f"the step size is {self.round_radius}; of the mixture sampler it is the largest "
                "move of a weight in the first round, above 0 and at most 1"
            )
        for name, least in (
            ("num_responses", 2),
            ("max_tokens", 1),
            ("num_rounds", 2),
            ("round_prompts", 1),
            ("num_restarts", 1),
        ):
            if getattr(self, name) < least:
                raise FitError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    def check_floor(self, num_policies: int) -> None:
        """Raises FitError if not all weights can be at the floor at once."""
        floor = self.descent.min_weight
        if self.importances is None and num_policies * floor > 1:
            raise FitError(
                f"the smallest weight is {floor} (--min-weight), which {num_policies} policies "
                f"cannot all have; it can be at most {1 / num_policies:.4g}"
            )


def bsmd(*, num_responses: int, max_tokens: int, seed: int = 0) -> FitSettings:
    """The settings of the founding paper's algorithm, batch stochastic mirror descent.

    Responses of the reference, one prompt a step, a constant step c / sqrt(T), the mean of all
    iterates, one run from equal weights, and no correction for the number of responses. T and c are
    ours, as is the unit of c, 1 / curvature.
    Source: Wang et al. 2025 (arXiv 2502.18699), Algorithm 2.
    """
    return FitSettings(
        sampler="reference",
        num_responses=num_responses,
        max_tokens=max_tokens,
        num_restarts=1,
        descent=DescentSettings(
            num_steps=BSMD_STEPS,
            batch_prompts=1,
            step_size=BSMD_STEP / np.sqrt(BSMD_STEPS),
            schedule="constant",
            averages="all",
            is_corrected=False,
            seed=seed,
        ),
    )


def importances_to_weights(importances: Mapping[str, float], names: Sequence[str]) -> Floats:
    """Fixed user importances as weights: the share of each policy in their sum, [K].

    Lemma 3.9 of the paper, the MORLHF case: mixing at the importances is optimal, so that there is
    nothing to fit.

    Raises: FitError for unknown names, and for importances that have no shares.
    """
    unknown = [name for name in importances if name not in names]
    if unknown:
        raise FitError(f"importance of {unknown[0]!r}: no such policy; there are: {listed(names)}")
    values_K = np.array([importances.get(name, 0.0) for name in names], dtype=np.float64)
    if not (np.isfinite(values_K).all() and (values_K >= 0).all() and values_K.sum() > 0):
        raise FitError(
            f"importances are {importances}; they must be finite, non-negative and not all 0"
        )
    share_K: Floats = values_K / values_K.sum()
    return share_K
