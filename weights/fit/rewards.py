"""The answers that rewards judge, and the form of a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefmix.weights.engines.prompts import Prompt

Reward = Callable[
    [Sequence[Prompt], Sequence[str], Sequence[Sequence[int]]], Sequence[float | None]
]
"""(prompts, answers, tokens of the answers) -> one number an answer; None where the reward does not
apply."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Texts of responses, all to one prompt one after the other."""

    prompts: Sequence[Prompt]
    """The prompt of each."""
    texts: Sequence[str]
    tokens: Sequence[Sequence[int]]
