"""The demo's rewards in TRL's form, for `prefmix train` and `prefmix eval`.

For example --reward prefmix.policies.demo.judges:concise
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefmix.policies.demo.reviews import rewards

Answer = str | list[dict[str, str]]
"""A text, or the messages of an answer."""


def positive(prompts: Sequence[Any], completions: Sequence[Answer], **_: Any) -> list[float]:
    """`rewards.positive` of each answer."""
    return [rewards.positive(_text(answer)) for answer in completions]


def concise(prompts: Sequence[Any], completions: Sequence[Answer], **_: Any) -> list[float]:
    """`rewards.concise` of each answer."""
    return [rewards.concise(_text(answer)) for answer in completions]


def polite(prompts: Sequence[Any], completions: Sequence[Answer], **_: Any) -> list[float]:
    """`rewards.polite` of each answer."""
    return [rewards.polite(_text(answer)) for answer in completions]


def _text(answer: Answer) -> str:
    return answer if isinstance(answer, str) else " ".join(part["content"] for part in answer)
