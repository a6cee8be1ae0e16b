"""Rewards from reward models: sequence classifiers with one output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from prefmix.policies.data.implicit_prompts import Content
from prefmix.policies.data.tokens import render
from prefmix.policies.errors import TrainError
from prefmix.policies.rewards.functions import finite
from prefmix.policies.rewards.reward import Answers
from prefmix.policies.safe_files import check_safe, loading

_BATCH_ROWS = 16


class ModelReward:
    """A sequence classifier with one output, such as TRL's RewardTrainer writes."""

    def __init__(self, folder: str, *, max_length: int, allow_unsafe_weights: bool = False) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if folder.startswith((".", "/", "~")) and not Path(folder).expanduser().is_dir():
            raise TrainError(
                f"there is no folder {folder!r} with a reward model; give a folder, a hub id, "
                "module:function or file.py:function"
            )
        check_safe(folder, "reward model", allow_unsafe_weights=allow_unsafe_weights)
        try:
            self._model = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, **loading(allow_unsafe_weights)
            )
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise TrainError(
                f"cannot load the reward model {folder!r} ({str(error).splitlines()[0]}); "
                "give a folder, a hub id, module:function or file.py:function"
            ) from None
        if self._model.config.num_labels != 1:
            raise TrainError(
                f"the reward model {folder!r} has {self._model.config.num_labels} outputs; "
                "expected 1"
            )
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if self._model.config.pad_token_id is None:
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._label = folder
        self._max_length = max_length
        self._model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def score(self, answers: Answers) -> list[float | None]:
        """See `Reward`. Batches are padded, so a score depends on its batch in the last digits."""
        scores: list[float] = []
        starts = range(0, len(answers), _BATCH_ROWS)
        # Only for long lists: a trainer scores a few answers at a time, under its own bar.
        for start in tqdm(starts, desc="rewards", delay=2.0, leave=False, disable=None):
            batch = answers.part(start, start + _BATCH_ROWS)
            scores += self._batch(batch.prompts, batch.answers)
        return [finite(s, name, self._label) for s, name in zip(scores, answers.names, strict=True)]

    def _batch(self, prompts: Sequence[Content], answers: Sequence[Content]) -> list[float]:
        import torch

        ids = [
            self._tokenizer(
                render(self._tokenizer, prompt, answer),
                add_special_tokens=isinstance(prompt, str),  # a chat template writes its own
                truncation=True,
                max_length=self._max_length,
            )["input_ids"]
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        encoded = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        encoded = encoded.to(self._model.device)
        with torch.no_grad():
            return [float(score) for score in self._model(**encoded).logits[:, 0]]
