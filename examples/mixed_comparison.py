"""Table (b): Mixed Preference Optimization beside DPO on all pairs and RLOO alone.

Labels are clean, or a fifth of them is flipped. One reward model, trained on the same labels,
splits the pairs and judges the answers of both kinds of RLOO. All take the same number of
optimiser steps of 32 answers: 16 pairs offline, 32 drawn answers online.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from examples.training_runs import (
    BATCH_PAIRS,
    LEARNING_RATE,
    REFERENCE,
    Base,
    Label,
    Numbers,
    deterministic,
    flipped,
    read_pairs,
    shared_settings,
    tell_nothing,
    tell_numbers,
    write_data,
)
from prefmix.policies.demo.reviews.rewards import positive
from prefmix.policies.train.settings import METHODS, MixedSettings, build

LABELS: dict[str, Label] = {"clean": deterministic, "20 % flipped": flipped(0.2)}
BETA = 1.0
ONLINE: dict[str, Any] = {
    "online_learning_rate": 5e-4,
    "online_beta": 0.1,
    "online_prompts": 4,
    "num_answers": 8,
    "max_new_tokens": 96,
    "reward_epochs": 3.0,
    "reward_learning_rate": LEARNING_RATE,
}


def compare(base: Base, folder: Path, *, num_seeds: int, steps: int) -> dict[str, list[Numbers]]:
    """Trains all three methods on both kinds of labels; each seed also draws its own data."""
    found: dict[str, list[Numbers]] = defaultdict(list)
    for seed in range(num_seeds):
        answers = base.training_answers(seed=seed)
        for kind, label in LABELS.items():
            num_pairs = write_data(folder, answers, positive, label, seed=seed)
            print(f"seed {seed}, {kind}: {num_pairs} pairs", flush=True)
            reward_model = _reward_model(folder, steps=steps, seed=seed)
            for name, train in (("dpo", _direct), ("rloo", _online), ("mixed", _mixed)):
                own = train(folder, reward_model, steps=steps, seed=seed)
                numbers = base.measured(folder / "policy", "positive") | own
                found[f"{kind}: {name}"].append(numbers)
                tell_numbers(f"{kind}: {name}", numbers, seed=seed)
                for left in ("policy", "policy.stages"):
                    shutil.rmtree(folder / left, ignore_errors=True)
            shutil.rmtree(reward_model)
    return {row: found[row] for row in sorted(found, key=lambda row: row.split(":")[0] != "clean")}


def wrong_labels(folder: Path, rows: list[int]) -> float:
    """Share of some pairs whose chosen answer has the lower reward."""
    pairs = read_pairs(folder)
    wrong = [positive(pairs[i]["chosen"]) < positive(pairs[i]["rejected"]) for i in rows]
    return sum(wrong) / len(wrong)


def _direct(folder: Path, reward_model: Path, *, steps: int, seed: int) -> Numbers:
    from prefmix.policies.train.jobs import run

    values = shared_settings(folder, folder / "policy", steps=steps, seed=seed)
    run(build(METHODS["dpo"], values | {"beta": BETA}), tell=tell_nothing)
    return {}


def _mixed(folder: Path, reward_model: Path, *, steps: int, seed: int) -> Numbers:
    """Settings with half of the steps offline, half online."""
    from prefmix.policies.train.jobs import run

    output = folder / "policy"
    settings = _settings(folder, output, steps=steps // 2, seed=seed, reward=str(reward_model))
    run(settings, tell=tell_nothing)
    split = json.loads((folder / "policy.stages/split/split.json").read_text(encoding="utf-8"))
    return {
        f"wrong labels, {part}": wrong_labels(folder, split[part]) for part in ("easy", "difficult")
    }


def _online(folder: Path, reward_model: Path, *, steps: int, seed: int) -> Numbers:
    """RLOO from the base and with the base as its reference, on all prompts."""
    from prefmix.policies.data.pairs import PAIR_FIELDS, read_rows
    from prefmix.policies.rewards.loading import load_reward
    from prefmix.policies.train.checkpoints import load_tokenizer
    from prefmix.policies.train.trainers import train_online

    output = folder / "policy"
    settings = _settings(folder, output, steps=steps, seed=seed, reward=str(reward_model))
    reward = load_reward(str(reward_model), max_length=settings.max_length)
    output.mkdir()
    train_online(
        settings,
        load_tokenizer(str(REFERENCE)),
        read_rows(folder / "pairs.jsonl", PAIR_FIELDS),
        reward,
        REFERENCE,
        output,
        folder / "policy.stages",
    )
    return {}


def _reward_model(folder: Path, *, steps: int, seed: int) -> Path:
    from prefmix.policies.data.pairs import PAIR_FIELDS, read_rows
    from prefmix.policies.train.checkpoints import load_tokenizer
    from prefmix.policies.train.trainers import train_reward_model

    output = folder / "reward-model"
    output.mkdir()
    settings = _settings(folder, output, steps=steps, seed=seed)
    pairs = read_rows(folder / "pairs.jsonl", PAIR_FIELDS)
    checkpoints = folder / "reward-model.checkpoints"
    train_reward_model(
        settings, load_tokenizer(str(REFERENCE)), {"pairs": pairs}, output, checkpoints
    )
    shutil.rmtree(checkpoints, ignore_errors=True)
    return output


def _settings(folder: Path, output: Path, *, steps: int, seed: int, **own: Any) -> MixedSettings:
    values = shared_settings(folder, output, steps=steps, seed=seed)
    assert values["batch_pairs"] * 2 == ONLINE["online_prompts"] * ONLINE["num_answers"], (
        BATCH_PAIRS
    )
    settings = build(MixedSettings, values | ONLINE | {"beta": BETA, "online_steps": steps} | own)
    assert isinstance(settings, MixedSettings)
    return settings
