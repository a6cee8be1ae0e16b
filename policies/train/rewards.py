"""Rewards of answers, from a Python function or a reward model, checked for every answer."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from prefmix.policies.train import TrainError
from prefmix.policies.train.pairs import Content
from prefmix.policies.train.safe_files import check_safe, loading
from prefmix.policies.train.tokens import render

_BATCH_ROWS = 16


class Reward(Protocol):
    """Scores answers."""

    def score(
        self, prompts: Sequence[Content], answers: Sequence[Content], names: Sequence[str]
    ) -> list[float]:
        """One finite number an answer.

        Args:
          names: names of the rows, for messages.
        Raises: TrainError naming the row that could not be scored.
        """


class FunctionReward:
    """A function in TRL's form, `f(prompts=[...], completions=[...]) -> [number, ...]`.

    The function is called with one answer at a time, so that an error names its row.
    """

    def __init__(self, function: Callable[..., Any], label: str) -> None:
        self._function = function
        self._label = label

    def score(
        self, prompts: Sequence[Content], answers: Sequence[Content], names: Sequence[str]
    ) -> list[float]:
        """See `Reward`."""
        rows = zip(prompts, answers, names, strict=True)
        return [self._one(*row) for row in _progress(rows, len(names))]

    def _one(self, prompt: Content, answer: Content, name: str) -> float:
        try:
            values = self._function(prompts=[prompt], completions=[answer])
        except Exception as error:  # someone else's code may raise anything
            raise TrainError(
                f"{name}: the reward function {self._label} raised {type(error).__name__}: {error}"
            ) from error
        try:
            (value,) = (float(value) for value in values)
        except (TypeError, ValueError):
            raise TrainError(
                f"{name}: the reward function {self._label} returned {values!r}; expected a list "
                "of one number"
            ) from None
        return _finite(value, name, self._label)


class ModelReward:
    """A sequence classifier with one output, such as TRL's RewardTrainer writes."""

    def __init__(self, folder: str, *, max_length: int, allow_unsafe_weights: bool = False) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        check_safe(folder, "reward model", allow_unsafe_weights=allow_unsafe_weights)
        try:
            self._model = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, **loading(allow_unsafe_weights)
            )
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise TrainError(
                f"cannot load the reward model {folder!r} ({str(error).splitlines()[0]}); "
                "give a folder, a hub id, or module:function"
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

    def score(
        self, prompts: Sequence[Content], answers: Sequence[Content], names: Sequence[str]
    ) -> list[float]:
        """See `Reward`. Batches are padded, so a score depends on its batch in the last digits."""
        scores: list[float] = []
        for start in _progress(range(0, len(names), _BATCH_ROWS), -(-len(names) // _BATCH_ROWS)):
            batch = slice(start, start + _BATCH_ROWS)
            scores += self._batch(prompts[batch], answers[batch])
        return [_finite(s, name, self._label) for s, name in zip(scores, names, strict=True)]

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


def load_reward(spec: str, *, max_length: int, allow_unsafe_weights: bool = False) -> Reward:
    """Loads `module:function`, or else a reward model's checkpoint.

    Args:
      spec: `module:function`, or a folder or hub id.
      max_length: tokens of prompt and answer that a model reads.
      allow_unsafe_weights: true allows files other than safetensors.
    Raises: TrainError if it cannot be loaded.
    """
    if ":" in spec and not Path(spec).exists():
        return FunctionReward(load_function(spec), spec)
    return ModelReward(spec, max_length=max_length, allow_unsafe_weights=allow_unsafe_weights)


def load_function(spec: str) -> Callable[..., Any]:
    """Imports `module:function`; modules of the working directory are found."""
    module, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise TrainError(
            f"cannot import the reward function {spec!r} ({error}); expected module:function"
        ) from None
    if not callable(function):
        raise TrainError(f"the reward {spec!r} is a {type(function).__name__}, no function")
    return function


def _progress(rows: Any, total: int) -> Any:
    # Only for long lists: a trainer scores a few answers at a time, under its own bar.
    return tqdm(rows, total=total, desc="rewards", delay=2.0, leave=False, disable=None)


def _finite(value: float, name: str, label: str) -> float:
    if not math.isfinite(value):
        raise TrainError(f"{name}: the reward of {label} is {value}; expected a finite number")
    return value
