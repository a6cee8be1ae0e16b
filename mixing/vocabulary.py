"""The vocabulary that all members of a mixture have in common, in which its tokens are drawn.

The front process finds it (prefmix.mixing.engine.member_checks) and writes it into the engine's
model config, from which every process of the engine reads it. This module needs neither vLLM nor
torch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

ATTRIBUTE = "prefmix_vocabulary"
"""The attribute of the model config that holds the common vocabulary as a dictionary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommonVocabulary:
    """The token ids that mean the same to every member. All others are never drawn."""

    num_rows: int
    """Every member has a row of logits for each id below this."""
    differing: frozenset[int] = frozenset()
    """Ids below `num_rows` that only some members' tokenizers have, or that are another token to
    some of them."""
    num_never_drawn: int = 0
    """Ids that some member has a row or a token for and the mixture never draws."""

    @property
    def size(self) -> int:
        """Number of ids that can be drawn."""
        return self.num_rows - len(self.differing)

    def without(self, ids: Collection[int]) -> list[int]:
        """The given ids that are not in the common vocabulary, in their order."""
        has_rows = not ids or (min(ids) >= 0 and max(ids) < self.num_rows)
        if has_rows and self.differing.isdisjoint(ids):  # most prompts: no loop in Python
            return []
        return [each for each in ids if not 0 <= each < self.num_rows or each in self.differing]

    def up_to(self, num_rows: int) -> CommonVocabulary:
        """The part below a number of rows."""
        if num_rows >= self.num_rows:
            return self
        differing = frozenset(each for each in self.differing if each < num_rows)
        lost = self.size - (num_rows - len(differing))
        return CommonVocabulary(
            num_rows=num_rows, differing=differing, num_never_drawn=self.num_never_drawn + lost
        )

    def write_into(self, hf_config: Any) -> None:
        """Leaves the vocabulary on a model config, which every process of the engine gets."""
        setattr(hf_config, ATTRIBUTE, {**asdict(self), "differing": sorted(self.differing)})

    @classmethod
    def of_config(cls, hf_config: Any) -> CommonVocabulary | None:
        """The vocabulary that `write_into` left on a model config; None if there is none."""
        data = getattr(hf_config, ATTRIBUTE, None)
        return None if data is None else cls(**{**data, "differing": frozenset(data["differing"])})
