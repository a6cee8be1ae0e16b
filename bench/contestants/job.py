"""The work of every contestant: prompts, numbers of tokens to draw, and weights."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Weights = Literal["same", "different", "one policy each", "one policy"]
"""The weights of a batch's requests. `same`: uniform. `different`: each request has its own, all
above 0. `one policy each`: one-hot, the policies in turn. `one policy`: one-hot, all the same."""

_PROMPT_TOKENS = range(2, 300)
"""Token ids that any vocabulary has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A batch of requests that arrive together."""

    prompts: Sequence[Sequence[int]]
    """Tokens of each request's prompt."""
    lengths: Sequence[int]
    """Tokens that each request draws; no request stops early."""
    weights: Sequence[Sequence[float]]
    """Each request's weights, one per policy."""
    heads: Sequence[Sequence[Sequence[int]]] | None = None
    """Per request the tokens that each policy reads before the prompt, the longest last; None if
    nothing comes before it."""

    @property
    def num_tokens(self) -> int:
        """Tokens that all requests together draw."""
        return sum(self.lengths)

    def only_first_token(self) -> Job:
        """The same requests, each ended by its first token."""
        return replace(self, lengths=[1] * len(self.lengths))

    def with_heads(self, tokens: int, *, seed: int) -> Job:
        """The same requests with a head for each policy: the last has so many tokens, each earlier
        one an equal share fewer."""
        rng = random.Random(seed)
        num_policies = len(self.weights[0])
        heads = [
            [
                [rng.choice(_PROMPT_TOKENS) for _ in range(tokens * number // num_policies)]
                for number in range(1, num_policies + 1)
            ]
            for _ in self.prompts
        ]
        return replace(self, heads=heads)

    def with_longest_head(self) -> Job:
        """The same requests, whose policies all read the longest head."""
        assert self.heads is not None, "nothing comes before the prompts"
        pairs = zip(self.heads, self.prompts, strict=True)
        return replace(self, prompts=[[*heads[-1], *prompt] for heads, prompt in pairs], heads=None)

    def split(self) -> list[Job]:
        """Each request as a job of its own."""
        rows = zip(self.prompts, self.lengths, self.weights, strict=True)
        return [
            Job(prompts=[prompt], lengths=[length], weights=[weights_K])
            for prompt, length, weights_K in rows
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Job:
        """Reads `to_dict`'s form."""
        return cls(**data)


def make_job(
    *,
    batch: int,
    num_policies: int,
    prompt_tokens: int,
    tokens: int,
    seed: int,
    vary_lengths: bool = False,
    weights: Weights = "same",
) -> Job:
    """A job of random prompts; jobs of different seeds share no prefix, so that no cache helps.

    Args:
      batch: number of requests.
      num_policies: K, the length of a weight vector.
      prompt_tokens: prompt length of each request.
      tokens: tokens drawn by each request, or on average.
      seed: seed of prompts, lengths and weights.
      vary_lengths: spread the lengths evenly between tokens/4 and 7/4 tokens, in random order.
      weights: one of `Weights`.
    """
    rng = random.Random(seed)
    prompts = [[rng.choice(_PROMPT_TOKENS) for _ in range(prompt_tokens)] for _ in range(batch)]
    lengths = spread_lengths(batch, tokens) if vary_lengths else [tokens] * batch
    rng.shuffle(lengths)
    vectors = [_weights(rng, weights, num_policies, row) for row in range(batch)]
    return Job(prompts=prompts, lengths=lengths, weights=vectors)


def spread_lengths(batch: int, mean: int) -> list[int]:
    """Lengths from 1/4 to 7/4 of the mean in even steps."""
    if batch == 1:
        return [mean]
    return [max(1, round(mean * (0.25 + 1.5 * row / (batch - 1)))) for row in range(batch)]


def _weights(rng: random.Random, kind: Weights, num_policies: int, row: int) -> list[float]:
    if kind == "same":
        return [1 / num_policies] * num_policies
    if kind == "different":  # bounded away from 0: a policy without weight may be skipped
        parts = [0.1 + rng.random() for _ in range(num_policies)]
        return [part / sum(parts) for part in parts]
    chosen = row % num_policies if kind == "one policy each" else 0
    return [float(policy == chosen) for policy in range(num_policies)]
