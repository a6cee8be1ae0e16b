"""transformers' Trainer with the Maximum Preference loss, in one forward pass over all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer

from prefmix.policies.data.tokens import Example
from prefmix.policies.train.maximum_preference import (
    IGNORED,
    Terms,
    maximum_preference_loss,
    sequence_logprobs,
    shuffled_passes,
)
from prefmix.policies.train.settings import MaximumSettings

ROLES = ("chosen", "rejected", "sft", "text")


class PlannedExamples(Dataset[dict[str, Example]]):
    """All batches of the run, planned before it starts, so that a resumed run skips exactly.

    Args:
      streams: examples by source; "pairs" holds (chosen, rejected), "sft" and "text" one each.
      length: pairs in the whole run.
    """

    def __init__(self, streams: Mapping[str, Sequence[Any]], length: int, *, seed: int) -> None:
        self._streams = {name: rows for name, rows in streams.items() if rows}
        orders = {
            name: shuffled_passes(len(rows), seed=f"{seed} {name}")
            for name, rows in self._streams.items()
        }
        self._plan = [{name: next(order) for name, order in orders.items()} for _ in range(length)]

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> dict[str, Example]:
        rows = {name: self._streams[name][row] for name, row in self._plan[index].items()}
        chosen, rejected = rows.pop("pairs")
        return {"chosen": chosen, "rejected": rejected, **rows}


def collate(items: Sequence[dict[str, Example]], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Stacks chosen rows, rejected rows, SFT rows and texts, in this order, padded on the right."""
    rows = [item[role] for role in ROLES for item in items if role in item]
    width = max(len(row.ids) for row in rows)
    input_ids_NT = torch.full((len(rows), width), pad_id)
    attention_mask_NT = torch.zeros((len(rows), width), dtype=torch.long)
    labels_NT = torch.full((len(rows), width), IGNORED)
    for n, row in enumerate(rows):
        ids_T = torch.tensor(row.ids)
        input_ids_NT[n, : len(ids_T)] = ids_T
        attention_mask_NT[n, : len(ids_T)] = 1
        labels_NT[n, row.num_context : len(ids_T)] = ids_T[row.num_context :]
    sizes = [sum(role in item for item in items) for role in ROLES]
    return {
        "input_ids": input_ids_NT,
        "attention_mask": attention_mask_NT,
        "labels": labels_NT,
        "sizes": torch.tensor(sizes),
    }


class MaximumPreferenceTrainer(Trainer):
    """Trains on `PlannedExamples` in their order, and logs the parts of the loss."""

    def __init__(self, settings: MaximumSettings, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._settings = settings
        # The loss is a mean over the rows of one forward pass, so accumulated losses are averaged.
        self.model_accepts_loss_kwargs = False
        self._parts: dict[str, list[float]] = {}

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of one forward pass over [chosen, rejected, SFT rows, texts]."""
        output = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            use_cache=False,
        )
        logprobs_N = sequence_logprobs(output.logits, inputs["labels"])
        chosen_B, rejected_B, sft_N, text_N = torch.split(logprobs_N, inputs["sizes"].tolist())
        terms = maximum_preference_loss(
            chosen_B,
            rejected_B,
            sft_N,
            text_N,
            scale=self._settings.scale,
            sft_weight=self._settings.sft_weight,
            text_weight=self._settings.text_weight,
        )
        self._remember(terms, (chosen_B > rejected_B).float().mean())
        return (terms.loss, output) if return_outputs else terms.loss

    def _remember(self, terms: Terms, accuracy: torch.Tensor) -> None:
        parts = {"preference": terms.preference, "accuracy": accuracy}
        if self.model.training:
            parts |= {"sft_logprob": terms.sft, "text_logprob": terms.text}
        for name, value in parts.items():
            role = name if self.model.training else f"eval_{name}"
            self._parts.setdefault(role, []).append(value.item())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs the means of the loss's parts since the last log, too."""
        is_evaluation = any(name.startswith("eval_") for name in logs)
        names = [name for name in self._parts if name.startswith("eval_") == is_evaluation]
        parts = {name: self._parts.pop(name) for name in names}
        means = {name: sum(values) / len(values) for name, values in parts.items()}
        super().log({**logs, **means}, start_time)
