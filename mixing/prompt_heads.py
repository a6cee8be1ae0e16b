"""Prompts of several policies, split into what they begin with and what all end with.

The engine reads one prompt, the longest, and for each policy the head that it reads instead of that
prompt's beginning (prefmix.mixing.prompts.request_heads).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SplitPrompts:
    """The prompts of a request as the engine takes them."""

    longest: int
    """The member whose prompt is the engine's."""
    heads_M: tuple[list[int] | None, ...] | None
    """The tokens that each member reads before those that all share, None for members that read
    nothing; None if all read the same."""
    lengths_M: tuple[int, ...]
    """Tokens of each member's prompt; 0 for members that read nothing."""


def split_prompts(prompts_M: Sequence[list[int] | None]) -> SplitPrompts:
    """Splits the prompts after the last token in which they differ.

    Args:
      prompts_M: token ids; None for members that do not run. At least one member runs.
    """
    lengths_M = tuple(0 if ids is None else len(ids) for ids in prompts_M)
    longest = max(range(len(prompts_M)), key=lengths_M.__getitem__)
    first = prompts_M[longest]
    assert first is not None, "at least one member runs"
    tail = min(_common_end(first, ids) for ids in prompts_M if ids is not None)
    if all(ids is None or len(ids) == tail for ids in prompts_M):
        return SplitPrompts(longest, None, lengths_M)
    heads = tuple(None if ids is None else ids[: len(ids) - tail] for ids in prompts_M)
    return SplitPrompts(longest, heads, lengths_M)


def _common_end(one: list[int], other: list[int]) -> int:
    """The number of last tokens that are the same in both: by bisection, as slices compare fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[len(one) - middle :] == other[len(other) - middle :]:
            low = middle
        else:
            high = middle - 1
    return low
