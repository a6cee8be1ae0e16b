"""The training job, from settings to a policy on disk: checks first, then the method's stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefmix.policies.data.pairs import Rows
from prefmix.policies.data.tokens import check_tokenizer, encode
from prefmix.policies.errors import TrainError
from prefmix.policies.rewards.loading import load_reward
from prefmix.policies.rewards.reward import Answers, Reward
from prefmix.policies.safe_files import check_safe
from prefmix.policies.train.cards import about, write_cards
from prefmix.policies.train.checkpoints import load_config, load_tokenizer
from prefmix.policies.train.inputs import EVALUATION, check_inputs, read_data
from prefmix.policies.train.progress import quiet_libraries
from prefmix.policies.train.settings import (
    DirectSettings,
    MaximumSettings,
    MixedSettings,
    TrainSettings,
)
from prefmix.policies.train.splitter import by_prompts, split_pairs
from prefmix.policies.train.stages import Stages, Tell, say
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
    check_inputs(settings)
    quiet_libraries()
    data = read_data(settings)
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


def _check(settings: TrainSettings, tokenizer: Any, data: Mapping[str, Rows]) -> None:
    vocab_size = load_config(settings.base).get_text_config().vocab_size
    for rows in data.values():
        check_tokenizer(tokenizer, vocab_size, rows)
    # TRL would silently drop rows that do not fit.
    for what in data.keys() & {"pairs", "sft", EVALUATION}:
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
            facts = train_direct(
                settings, self.tokenizer, self.data, folder, checkpoints, final=True
            )
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
        judges = [(self.reward, range(len(pairs)))] if self.reward else self._judges(settings)
        folder = self.stages.run(
            "split", lambda folder, _: _split(settings, self.tokenizer, pairs, judges, folder)
        )
        split = json.loads((folder / "split.json").read_text(encoding="utf-8"))
        easy, difficult = pairs.take(split["easy"]), pairs.take(split["difficult"])
        start = self.stages.run(
            "dpo",
            lambda *to: train_direct(
                settings, self.tokenizer, {**self.data, "pairs": easy}, *to, final=False
            ),
        )
        reward = self.reward or self._trained_reward(settings, "reward-model", pairs)

        def make(folder: Path, checkpoints: Path) -> dict[str, Any]:
            facts = train_online(
                settings, self.tokenizer, difficult, reward, start, folder, checkpoints
            )
            write_cards(folder, settings, self.data, {**self.stages.facts, "policy": facts})
            return facts

        self.stages.run("policy", make)
        self.stages.publish("policy", keep=True)

    def _judges(self, settings: MixedSettings) -> list[Judge]:
        """Two reward models, each trained on one half of the pairs and to judge the other half."""
        pairs = self.data["pairs"]
        halves = by_prompts(pairs, 0.5, seed=f"{settings.seed} halves")
        if not all(halves):
            raise TrainError(
                "all pairs have one prompt, so that a reward model would judge answers that it was "
                "trained on; give pairs of several prompts, or --reward"
            )
        return [
            (self._trained_reward(settings, f"reward-half-{number}", pairs.take(own)), other)
            for number, own, other in ((1, halves[0], halves[1]), (2, halves[1], halves[0]))
        ]

    def _trained_reward(self, settings: MixedSettings, stage: str, pairs: Rows) -> Reward:
        data = {**self.data, "pairs": pairs}
        folder = self.stages.run(
            stage, lambda *to: train_reward_model(settings, self.tokenizer, data, *to)
        )
        return load_reward(str(folder), max_length=settings.max_length)


Judge = tuple[Reward, Sequence[int]]
"""A reward, and the places of the pairs that it judges."""


def _split(
    settings: MixedSettings, tokenizer: Any, pairs: Rows, judges: Sequence[Judge], folder: Path
) -> dict[str, Any]:
    """Scores both answers of every pair, splits the pairs by the gap and writes both files.

    Without a threshold, each judge's pairs are split by themselves: two reward models have two
    scales.
    """
    scores: dict[int, dict[str, float]] = {}
    easy: list[int] = []
    difficult: list[int] = []
    thresholds: list[float] = []
    for reward, places in judges:
        part = pairs.take(places)
        scored = _scored(settings, tokenizer, part, reward)
        gaps = [row["chosen"] - row["rejected"] for row in scored]
        scores |= dict(zip(places, scored, strict=True))
        if settings.threshold is None:
            split = split_pairs(gaps, threshold=None, quantile=settings.quantile)
            easy += [places[i] for i in split.easy]
            difficult += [places[i] for i in split.difficult]
            thresholds.append(split.threshold)
    gaps = [scores[i]["chosen"] - scores[i]["rejected"] for i in range(len(pairs))]
    if settings.threshold is not None:
        split = split_pairs(gaps, threshold=settings.threshold, quantile=settings.quantile)
        easy, difficult, thresholds = list(split.easy), list(split.difficult), [split.threshold]
    with (folder / "scores.jsonl").open("w", encoding="utf-8") as file:
        for index, name in enumerate(pairs.names):
            row = {"row": name, **scores[index], "gap": gaps[index]}
            file.write(json.dumps(row) + "\n")
    parts = {"threshold": thresholds, "easy": sorted(easy), "difficult": sorted(difficult)}
    (folder / "split.json").write_text(json.dumps(parts) + "\n", encoding="utf-8")
    return {
        **{
            f"threshold{f'_half_{number}' if len(thresholds) > 1 else ''}": threshold
            for number, threshold in enumerate(thresholds, start=1)
        },
        "easy": len(easy),
        "difficult": len(difficult),
        "wrongly_ordered": sum(gap < 0 for gap in gaps),
    }


def _scored(
    settings: MixedSettings, tokenizer: Any, pairs: Rows, reward: Reward
) -> list[dict[str, float]]:
    """The rewards of both answers of each pair. Raises: TrainError where one does not apply."""
    scored: list[dict[str, float]] = [{} for _ in pairs.rows]
    for answer in ("chosen", "rejected"):
        tokens = [
            encode(tokenizer, name, row["prompt"], [row[answer]], max_length=settings.max_length)
            for name, row in zip(pairs.names, pairs.rows, strict=True)
        ]
        names = [f"{name}, {answer!r}" for name in pairs.names]
        rewards = reward.score(
            Answers(
                prompts=[row["prompt"] for row in pairs.rows],
                answers=[row[answer] for row in pairs.rows],
                names=names,
                columns=pairs.columns,
                completion_ids=[each.ids[each.num_context :] for (each,) in tokens],
            )
        )
        for name, row, value in zip(names, scored, rewards, strict=True):
            if value is None:
                raise TrainError(
                    f"{name}: the reward does not apply to it (None), but the pairs are split by "
                    "the rewards of both answers; leave the pair out, or return a number"
                )
            row[answer] = value
    return scored
