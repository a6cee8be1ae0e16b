"""The result of a fit to rewards: weights, gains along the way, how good they are, a verdict.

Shapes: K policies, O objectives, T rounds, R single policies.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from prefmix.mixing.ways_to_mix import Mixing
from prefmix.weights.fit.result import ENOUGH_PROMPTS
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.reward_fit.gains import Scales
from prefmix.weights.reward_fit.measured_gains import MeasuredGains

Aim = Literal["max-min-reward", "mean", "weighted"]

CONVERGED, SETTLED = 0.02, 0.1
"""Gains by which the aim may be known to be short, and by which it may be short, at most."""


@dataclass(frozen=True, kw_only=True)
class RewardFitResult:
    """The result of a fit to rewards."""

    aim: Aim
    names: tuple[str, ...]
    """The policies."""
    objectives: tuple[str, ...]
    importance_O: Floats
    """The objectives' weights in the mean; equal ones where the smallest gain counts."""
    weights_K: Floats
    path_TK: Floats
    """The weights of every round, the first uniform, and the answer last, [T + 1, K]."""
    gains_TO: Floats
    """The gains measured in every round, [T, O]."""
    scales: Scales
    members: tuple[str, ...]
    """The members that were measured alone."""
    alone_RO: Floats
    """Their gains."""
    measured: MeasuredGains
    min_weight: float = 0.0
    mixing: Mixing = "logits"
    """The way to mix that was fitted."""

    @property
    def weights(self) -> dict[str, float]:
        """The fitted weights by policy."""
        return dict(zip(self.names, self.weights_K.tolist(), strict=True))

    @property
    def front(self) -> list[int]:
        """The rounds on the Pareto front that the fit passed, with the answer as number T."""
        gains = [tuple(row) for row in self.gains_TO.tolist()]
        gains.append(tuple(self.measured.gain.values()))
        return [
            index
            for index, own in enumerate(gains)
            if not any(
                other != own and all(a >= b for a, b in zip(other, own, strict=True))
                for other in gains
            )
        ]

    @property
    def verdict(self) -> str:
        """`trustworthy`, or what to change."""
        found = self.measured
        if found.num_prompts < ENOUGH_PROMPTS:
            return (
                f"not trustworthy: intervals from {found.num_prompts} prompts say nothing; give at "
                f"least {ENOUGH_PROMPTS}, better 64"
            )
        low, high = found.rise_interval
        if low > CONVERGED:
            return (
                f"not converged: nearby weights raise the aim by up to {found.rise:.2f} of a gain; "
                "take more rounds (--rounds)"
            )
        if high > SETTLED:
            return (
                f"not settled: nearby weights could raise the aim by up to {high:.2f} of a gain; "
                "take more prompts, responses or rounds"
            )
        return "trustworthy"

    def provenance(self) -> dict[str, Any]:
        """The part of a profile's provenance that says how good the weights are."""
        scales = {
            name: {"zero": zero, "one": one, "best_policy": best}
            for name, zero, one, best in zip(
                self.objectives,
                self.scales.zero_O.tolist(),
                self.scales.one_O.tolist(),
                self.scales.best_of_O,
                strict=True,
            )
        }
        return {
            "fitted": f"rewards of the served mixture: {self.aim}",
            "verdict": self.verdict,
            "gains": asdict(self.measured),
            "scales": scales,
        }
