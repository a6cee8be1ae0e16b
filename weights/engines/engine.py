"""The interface of an engine that draws and scores responses, for fits and evaluations.

`prefmix.weights.engines.local` is vLLM in this process, `prefmix.weights.engines.remote` a running
server.

Shapes: M members of the mixture (policies, then the reference if there is one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prefmix.mixing.ways_to_mix import Mixing
from prefmix.weights.engines.member_prompts import PromptTokens, Tokens
from prefmix.weights.engines.prompts import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Sums over a response's tokens, in nats; NaN for members without weight."""

    log_partition: float
    """log of each token's normaliser, summed: the log importance weight from the served mixture to
    the sequence-level product."""
    entropy: float
    """Entropy of the mixture."""
    kl_M: tuple[float, ...]
    """KL(mixture || member)."""
    logprob_M: tuple[float, ...]
    """log-probability of the token under the member."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """One sampled response."""

    tokens: Tokens
    """The tokens of the response, the end-of-text token included if it was drawn."""
    logprob: float
    """Log-probability of the whole response under the weights it was drawn with, in nats."""
    text: str = ""
    """The response as text, special tokens left out."""
    figures: Figures | None = None
    """The engine's measurements while it drew the response; None from one that cannot, and where
    parameters were mixed."""


class Engine(Protocol):
    """Draws and scores responses: vLLM in this process, or a running server."""

    def tokenize(self, prompts: Sequence[Prompt]) -> Sequence[PromptTokens]:
        """Prompt tokens, chat template applied."""

    def sample(
        self,
        prompts: Sequence[PromptTokens],
        weights_M: Sequence[float],
        *,
        num_responses: int,
        max_tokens: int,
        seed: int,
        mixing: Mixing = "logits",
    ) -> list[list[Response]]:
        """`num_responses` responses to each prompt at temperature 1, with their figures if logits
        are mixed."""

    def score(
        self,
        pairs: Sequence[tuple[PromptTokens, Tokens]],
        weights_M: Sequence[float],
        *,
        mixing: Mixing = "logits",
    ) -> list[float]:
        """Log-probability of each (prompt, response) pair's response, in nats."""
