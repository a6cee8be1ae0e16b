"""The result of a fit: weights, the way to them, how good they are, and a verdict in words.

Shapes: K policies, T steps or rounds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from prefmix.weights.fit.sequence_level.certificate import Certificate
from prefmix.weights.fit.sequence_level.mirror_descent import Averages
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.token_level.deployed import Deployed

NOTHING_FITTED = "the importances were given, nothing was fitted"
MIXTURE, PARAMETERS = "mixture (token level)", "mixture of parameters (token level)"
"""The objectives of the mixture sampler: of mixed logits, of mixed parameters."""
ENOUGH_PROMPTS = 5
"""Fewest prompts that an interval over prompts says anything about others from."""
AT_FLOOR = 0.005
"""A fitted weight less than this above the floor counts as held up by the floor."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The result of a fit."""

    names: tuple[str, ...]
    weights_K: Floats
    fitted: str
    """The objective that the weights minimise: MIXTURE, PARAMETERS, `sequence (sequence level)`,
    `reference (sequence level)` or `rewards`; `fixed importances` minimise none."""
    path_TK: Floats
    """The weights step by step, or round by round; the starting point is the first row."""
    rounds_kl_TK: Floats | None
    """The measured KLs of each round of the mixture sampler; None without rounds."""
    certificate: Certificate | None
    """The certificate of the sequence-level objective; None if that was not fitted."""
    deployed: Deployed | None
    """None without an engine (a score table from outside)."""
    verdict: str
    """`trustworthy`, or what to change."""
    in_reward_form: bool = False
    """True if the K are rewards: a certificate's `kl` is then that to the policy that a reward
    defines, proportional to the reference e^(reward / beta)."""
    averages: Averages = "tail"
    """The iterates of a descent whose mean the answer is."""
    is_corrected: bool = True
    """True if a descent's answer was corrected for the number of responses."""
    min_weight: float = 0.0
    """The floor that the weights were fitted above."""
    multiplier_K: Floats | None = None
    """The multipliers of the minimax problem (prefmix.weights.fit.token_level.minimax_step); None
    if another was solved."""

    @property
    def weights(self) -> dict[str, float]:
        """The fitted weights by policy."""
        return dict(zip(self.names, self.weights_K.tolist(), strict=True))

    @property
    def at_floor(self) -> tuple[str, ...]:
        """The policies that a floor holds up; they may be nearer to the mixture than the others."""
        if self.min_weight == 0:
            return ()
        limit = self.min_weight + AT_FLOOR
        return tuple(name for name, weight in self.weights.items() if weight < limit)

    def provenance(self) -> dict[str, Any]:
        """The part of a profile's provenance that says how good the weights are."""
        return {
            "fitted": self.fitted,
            "verdict": self.verdict,
            "certificate": None if self.certificate is None else self.certificate.to_dict(),
            "deployed": None if self.deployed is None else asdict(self.deployed),
        }

    def with_deployed(self, deployed: Deployed) -> FitResult:
        """The result with the KLs of the served mixture, which the verdict then speaks of, too."""
        if self.rounds_kl_TK is not None:
            verdict = _verdict_on_rounds(deployed)
        elif self.certificate is not None:
            verdict = self._verdict_on_certified(deployed)
        else:
            verdict = self.verdict
        return replace(self, deployed=deployed, verdict=verdict)

    def _verdict_on_certified(self, deployed: Deployed) -> str:
        if self.verdict != "trustworthy":
            return self.verdict
        low, high = deployed.gap_interval
        return (
            "trustworthy for the sequence-level objective, which is not what is served: the served "
            f"mixture's largest KL is {low:.2f} to {high:.2f} nats above the weighted mean "
            "(--sampler mixture makes the largest smallest)"
        )


def _verdict_on_rounds(deployed: Deployed) -> str:
    if deployed.num_prompts < ENOUGH_PROMPTS:
        return (
            f"not trustworthy: intervals from {deployed.num_prompts} prompts say nothing; give at "
            f"least {ENOUGH_PROMPTS}, better 64"
        )
    if deployed.fall_interval is None:
        return "trustworthy"  # a single policy
    low, high = deployed.fall_interval
    if low > 0.05 * deployed.largest:
        return (
            f"not converged: nearby weights lower the largest KL by up to {deployed.fall:.2f} "
            "nats; take more rounds (--rounds)"
        )
    if high > 0.2 * deployed.largest:
        return (
            f"not settled: nearby weights could lower the largest KL by up to {high:.2f} nats; "
            "take more prompts, responses or rounds"
        )
    return "trustworthy"
