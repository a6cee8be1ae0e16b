"""The training job, from settings to a policy on disk: checks first, then the method's stages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefmix.policies.train.cards import about, write_cards
from prefmix.policies.train.checkpoints import load_config, load_tokenizer
from prefmix.policies.train.pairs import ANSWER_FIELDS, PAIR_FIELDS, TEXT_FIELDS, Rows, read_rows
from prefmix.policies.train.progress import quiet_libraries
from prefmix.policies.train.rewards import Reward, load_reward
from prefmix.policies.train.safe_files import check_safe
from prefmix.policies.train.settings import (
    DirectSettings,
    MaximumSettings,
    MixedSettings,
    TrainSettings,
)
from prefmix.policies.train.splitter import split_pairs
from prefmix.policies.train.stages import Stages, Tell, say
from prefmix.policies.train.tokens import check_tokenizer, encode
from prefmix.policies.train.trainers import (
    train_direct,
    train_maximum,
    train_online,
    train_reward_model,
)


def run(settings: TrainSettings, *, tell: Tell = say) -> Path:
    """Trains a policy and returns its folder. An unfinished run of the same settings is resumed.

    Args:
      settings: of one of the methods.
      tell: receives one line per stage.
    Raises: TrainError about the data, the base, the reward or the output; the output then does not
      exist.
    """
    quiet_libraries()
    data = _read(settings)
    check_safe(settings.base, "base model", allow_unsafe_weights=settings.allow_unsafe_weights)
    tokenizer = load_tokenizer(settings.base)
    _check(settings, tokenizer, data)
    reward = _given_reward(settings)
    stages = Stages(settings.output, about(settings, data), tell=tell)
    job = _Job(tokenizer, data, reward, stages)
    match settings:
        case DirectSettings():
            job.direct(settings)
        case MaximumSettings():
            job.maximum(settings)
        case MixedSettings():
            job.mixed(settings)
    return settings.output


def _read(settings: TrainSettings) -> dict[str, Rows]:
    data = {"pairs": read_rows(settings.data, PAIR_FIELDS)}
    if isinstance(settings, MaximumSettings):
        if settings.sft_data is not None:
            data["sft"] = read_rows(settings.sft_data, ANSWER_FIELDS)
        if settings.text_data is not None:
            data["text"] = read_rows(settings.text_data, TEXT_FIELDS)
    return data


def _check(settings: TrainSettings, tokenizer: Any, data: Mapping[str, Rows]) -> None:
    vocab_size = load_config(settings.base).get_text_config().vocab_size
    for rows in data.values():
        check_tokenizer(tokenizer, vocab_size, rows)
    # TRL would silently drop rows that do not fit.
    for what in data.keys() & {"pairs", "sft"}:
        for name, row in zip(data[what].names, data[what].rows, strict=True):
            answers = [content for field, content in row.items() if field != "prompt"]
            encode(tokenizer, name, row["prompt"], answers, max_length=settings.max_length)


def _given_reward(settings: TrainSettings) -> Reward | None:
    if not isinstance(settings, MixedSettings) or settings.reward is None:
        return None
    return load_reward(
        settings.reward,
        max_length=settings.max_length,
        allow_unsafe_weights=settings.allow_unsafe_weights,
    )


@dataclass(frozen=True)
class _Job:
    tokenizer: Any
    data: dict[str, Rows]
    reward: Reward | None
    """None if the method needs none, or trains its own."""
    stages: Stages

    def direct(self, settings: DirectSettings) -> None:
        def make(folder: Path, checkpoints: Path) -> dict[str, Any]:
            pairs = self.data["pairs"]
            facts = train_direct(settings, self.tokenizer, pairs, folder, checkpoints, final=True)
            write_cards(folder, settings, self.data, {"policy": facts})
            return facts

        self.stages.run("policy", make)
        self.stages.publish("policy", keep=False)

    def maximum(self, settings: MaximumSettings) -> None:
        def make(folder: Path, checkpoints: Path) -> dict[str, Any]:
            facts = train_maximum(settings, self.tokenizer, self.data, folder, checkpoints)
            write_cards(folder, settings, self.data, {"policy": facts})
            return facts

        self.stages.run("policy", make)
        self.stages.publish("policy", keep=False)

    def mixed(self, settings: MixedSettings) -> None:
        pairs = self.data["pairs"]
        reward = self.reward or self._trained_reward(settings)
        folder = self.stages.run("split", lambda folder, _: _split(settings, pairs, reward, folder))
        split = json.loads((folder / "split.json").read_text(encoding="utf-8"))
        easy, difficult = pairs.take(split["easy"]), pairs.take(split["difficult"])
        start = self.stages.run(
            "dpo", lambda *to: train_direct(settings, self.tokenizer, easy, *to, final=False)
        )

        def make(folder: Path, checkpoints: Path) -> dict[str, Any]:
            facts = train_online(
                settings, self.tokenizer, difficult, reward, start, folder, checkpoints
            )
            write_cards(folder, settings, self.data, {**self.stages.facts, "policy": facts})
            return facts

        self.stages.run("policy", make)
        self.stages.publish("policy", keep=True)

    def _trained_reward(self, settings: MixedSettings) -> Reward:
        folder = self.stages.run(
            "reward-model",
            lambda *to: train_reward_model(settings, self.tokenizer, self.data["pairs"], *to),
        )
        return load_reward(str(folder), max_length=settings.max_length)


def _split(settings: MixedSettings, pairs: Rows, reward: Reward, folder: Path) -> dict[str, Any]:
    """Scores both answers of every pair, splits the pairs by the gap and writes both files."""
    prompts = [row["prompt"] for row in pairs.rows]
    scores = {
        answer: reward.score(
            prompts, [row[answer] for row in pairs.rows], [f"{n}, {answer!r}" for n in pairs.names]
        )
        for answer in ("chosen", "rejected")
    }
    gaps = [c - r for c, r in zip(scores["chosen"], scores["rejected"], strict=True)]
    split = split_pairs(gaps, threshold=settings.threshold, quantile=settings.quantile)
    with (folder / "scores.jsonl").open("w", encoding="utf-8") as file:
        for index, name in enumerate(pairs.names):
            row = {"row": name, **{answer: scores[answer][index] for answer in scores}}
            file.write(json.dumps({**row, "gap": gaps[index]}) + "\n")
    parts = {"threshold": split.threshold, "easy": split.easy, "difficult": split.difficult}
    (folder / "split.json").write_text(json.dumps(parts) + "\n", encoding="utf-8")
    return {
        "threshold": split.threshold,
        "easy": len(split.easy),
        "difficult": len(split.difficult),
        "wrongly_ordered": sum(gap < 0 for gap in gaps),
    }
