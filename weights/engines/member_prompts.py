"""A prompt as each policy reads it, where policies have prompts of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from prefmix.mixing.prompt_heads import split_prompts

Tokens: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MemberPrompts:
    """One prompt of a mixture of M members."""

    tokens_M: tuple[Tokens, ...]
    """The tokens that each member reads."""

    def __len__(self) -> int:
        """Tokens of the longest."""
        return max(map(len, self.tokens_M))


PromptTokens: TypeAlias = Tokens | MemberPrompts
"""A prompt that all members read, or one for each."""


def as_engine_takes(
    prompt: PromptTokens, weights_M: Sequence[float]
) -> tuple[Tokens, Sequence[Sequence[int] | None] | None]:
    """The prompt of an engine's request and the heads of its members.

    Args:
      prompt: the tokens.
      weights_M: the request's; members without weight read nothing.
    Returns: the heads are None if all members with weight read the same.
    """
    if not isinstance(prompt, MemberPrompts):
        return prompt, None
    pairs = zip(prompt.tokens_M, weights_M, strict=True)
    split = split_prompts([list(ids) if weight else None for ids, weight in pairs])
    return prompt.tokens_M[split.longest], split.heads_M
