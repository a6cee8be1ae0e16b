"""The result of a fit: weights, the way to them, how good they are, and a verdict in words.

Shapes: K policies, T steps or rounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from prefmix.weights.fit.certificate import MAX_SPREAD, Certificate
from prefmix.weights.fit.deployed import Deployed
from prefmix.weights.fit.objective import Floats
from prefmix.weights.fit.on_policy import unrest

AT_FLOOR = 0.005
"""A fitted weight less than this above the floor counts as held up by the floor."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The result of a fit."""

    names: tuple[str, ...]
    weights_K: Floats
    fitted: str
    """The objective that the weights minimise: `mixture (token level)`, `reference (sequence
    level)` or `rewards`; `fixed importances` minimise none."""
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
    """True if the K are rewards: a certificate's `kl` is then KL - reward / beta of each."""
    min_weight: float = 0.0
    """The floor that the weights were fitted above."""

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

    def with_deployed(self, deployed: Deployed) -> FitResult:
        """The result with the KLs of the served mixture, which the verdict then speaks of, too."""
        if self.rounds_kl_TK is not None:
            verdict = _verdict_on_rounds(self.path_TK, deployed)
        elif self.certificate is not None:
            verdict = self._verdict_on_certified(deployed)
        else:
            verdict = self.verdict
        return replace(self, deployed=deployed, verdict=verdict)

    def _verdict_on_certified(self, deployed: Deployed) -> str:
        if self.verdict != "trustworthy":
            return self.verdict
        kls = [kl for name, kl in deployed.kl.items() if name not in self.at_floor]
        spread = max(kls, default=0.0) - min(kls, default=0.0)
        return (
            "trustworthy for the sequence-level objective; the deployed mixture's KLs differ by "
            f"{spread:.2f} nats (--sampler mixture fits those)"
        )


def _verdict_on_rounds(path_TK: Floats, deployed: Deployed) -> str:
    if (moved := unrest(path_TK)) > MAX_SPREAD:
        return (
            f"not settled: the averaged weights still move (by {moved:.3f}); "
            "take more rounds (--rounds), prompts or responses"
        )
    if deployed.gap_interval[0] > 0.1 * max(deployed.kl.values()):
        return (
            f"not converged: the deployed KLs differ by {deployed.gap:.2f} nats; take more rounds"
        )
    return "trustworthy"
