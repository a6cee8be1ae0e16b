"""What a fit is asked and what it answers.

Shapes: K policies, T steps or rounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from prefmix.weights.fit.certificate import Certificate
from prefmix.weights.fit.mirror_descent import DescentSettings
from prefmix.weights.fit.objective import Floats

AT_FLOOR = 0.005
"""A fitted weight this little above the floor is taken to rest on it."""

Sampler = Literal["mixture", "reference"]


class FitError(ValueError):
    """A fit that cannot be run; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What to fit and how much to draw. Checked when made."""

    sampler: Sampler = "mixture"
    """`mixture` fits what is served; `reference` is the paper's estimator."""
    importances: dict[str, float] | None = None
    """Fixed user importances (the MORLHF case): nothing is fitted, only certified."""
    num_responses: int = 16
    """Responses a prompt; fewer bias the reference fit towards vertices."""
    max_tokens: int = 128
    """Longest response, in tokens."""
    num_rounds: int = 12
    """Rounds of the mixture sampler."""
    round_prompts: int = 64
    """Prompts a round of the mixture sampler."""
    round_step_size: float = 0.5
    """How much of the way to its target a round of the mixture sampler goes; above 0, at most 1."""
    num_restarts: int = 8
    """Runs of the descent from different starts and seeds (reference sampler)."""
    descent: DescentSettings = field(default_factory=DescentSettings)
    """Steps, batches and schedule of the reference sampler; floor and seed of both."""

    def __post_init__(self) -> None:
        if self.sampler not in ("mixture", "reference"):
            raise FitError(f"sampler is {self.sampler!r}; allowed: mixture, reference")
        if self.sampler == "mixture" and not 0 < self.round_step_size <= 1:
            raise FitError(
                f"the step size is {self.round_step_size}; of the mixture sampler it is the share "
                "of a whole step, above 0 and at most 1"
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


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """The served mixture at the fitted weights, measured on fresh responses of its own."""

    kl: dict[str, float]
    """KL(mixture || policy), nats per response."""
    kl_interval: dict[str, tuple[float, float]]
    """95 % bootstrap interval over prompts."""
    gap: float
    """max_k KL_k - sum_k w_k KL_k; with a floor, over what lies above it
    (prefmix.weights.fit.certificate)."""
    gap_interval: tuple[float, float]
    """95 % bootstrap interval."""
    num_responses: int
    """Responses measured."""
    mean_tokens: float
    """Their mean length."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a fit found. `fitted` says what the weights minimise."""

    names: tuple[str, ...]
    weights_K: Floats
    fitted: str
    """`mixture (token level)`, `reference (sequence level)`, `rewards` or `fixed importances`."""
    path_TK: Floats
    """The weights on their way."""
    rounds_kl_TK: Floats | None
    """Mixture sampler: the measured KLs of each round."""
    certificate: Certificate | None
    """Of the sequence-level objective; None where it was not fitted."""
    deployed: Deployed | None
    """None without an engine (a score table from outside)."""
    verdict: str
    """Plain words: trustworthy, or what to change."""
    in_reward_form: bool = False
    """Whether the K are rewards: a certificate's `kl` is then KL - reward / beta of each."""
    min_weight: float = 0.0
    """The floor that the weights were fitted above."""

    @property
    def at_floor(self) -> tuple[str, ...]:
        """The policies that a floor holds up, which may be nearer to the mixture than the others;
        none without a floor."""
        if self.min_weight == 0:
            return ()
        limit = self.min_weight + AT_FLOOR
        return tuple(name for name, weight in self.weights.items() if weight < limit)

    @property
    def weights(self) -> dict[str, float]:
        """The fitted weights by policy."""
        return dict(zip(self.names, self.weights_K.tolist(), strict=True))
