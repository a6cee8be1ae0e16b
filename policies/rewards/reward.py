"""The interface of rewards, and the answers that they judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prefmix.policies.data.implicit_prompts import Content

ARGUMENTS = ("prompts", "completions", "completion_ids")
"""The arguments of TRL's reward functions; no column of the data can have their names."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers to be judged: lists of equal length."""

    prompts: Sequence[Content]
    answers: Sequence[Content]
    names: Sequence[str]
    """Names of the rows, for messages."""
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """The other columns of the data."""
    completion_ids: Sequence[Sequence[int]] | None = None
    """The answers' tokens; None where they are not known."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of a function that are no lists, such as TRL's `log_metric`."""

    def __len__(self) -> int:
        return len(self.names)

    def part(self, start: int, end: int) -> Answers:
        """Some of the answers."""
        cut = slice(start, end)
        ids = self.completion_ids
        return Answers(
            prompts=self.prompts[cut],
            answers=self.answers[cut],
            names=self.names[cut],
            columns={name: values[cut] for name, values in self.columns.items()},
            completion_ids=None if ids is None else ids[cut],
            extras=self.extras,
        )


class Reward(Protocol):
    """Scores answers."""

    def score(self, answers: Answers) -> list[float | None]:
        """One finite number an answer, or None where the reward does not apply.

        Raises: TrainError naming the row that could not be scored.
        """
