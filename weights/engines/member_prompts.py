"""A prompt as each policy reads it, where policies have prompts of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from prefmix.mixing.prompt_heads import split_prompts
from prefmix.mixing.system_texts import with_system
from prefmix.weights.engines.errors import EngineError

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


_MESSAGES = [{"role": "user", "content": "Hello."}]
_MAX_REASON_CHARS = 300


def check_systems(write: Callable[[Sequence[Any]], Tokens], systems: Sequence[str]) -> None:
    """Checks that the chat template carries the policies' system texts.

    Args: write: makes tokens of a conversation.
    Raises: EngineError without the text if one is refused or left out.
    """
    for text in systems:
        try:
            is_left_out = write(with_system(text, _MESSAGES)) == write(_MESSAGES)
        except ValueError as error:  # as vLLM tells of a template's refusal
            reason = " ".join(str(error).split())
            hidden = "" if text in str(error) else f": {reason:.{_MAX_REASON_CHARS}}"
            raise EngineError(
                f"a policy has a system text, which no conversation can carry here{hidden}; give a "
                "chat template that takes system messages, or leave the text out"
            ) from None
        if is_left_out:
            raise EngineError(
                "a policy has a system text, but the chat template leaves system messages out; "
                "give one that takes them, or leave the text out"
            )
