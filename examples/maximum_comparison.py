"""Table (a): Maximum Preference Optimization beside DPO and IPO at equal steps and data.

Pairs are two answers of the base to one prompt. The shorter answer is preferred, either always or
by the Bradley-Terry law of the reward gap. In the first case, with few pairs and several passes,
the KL term of DPO is said to stop acting.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from examples.training_runs import (
    Base,
    Label,
    Numbers,
    bradley_terry,
    deterministic,
    shared_settings,
    tell_nothing,
    tell_numbers,
    write_data,
)
from prefmix.policies.demo.reviews.rewards import concise
from prefmix.policies.train.settings import METHODS, build

LABELS: dict[str, Label] = {"always": deterministic, "Bradley-Terry": bradley_terry(24.0)}
"""Scale per unit of reward: 24 is 6 per standard deviation, as for the demo policies."""

CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo, beta 0.1": ("dpo", {"beta": 0.1}),
    "dpo, beta 1": ("dpo", {"beta": 1.0}),
    "ipo, beta 0.1": ("dpo", {"beta": 0.1, "loss": "ipo"}),
    "ipo, beta 1": ("dpo", {"beta": 1.0, "loss": "ipo"}),
    "maximum, sft 0": ("maximum-preference", {"sft_weight": 0}),
    "maximum, sft 0.005": ("maximum-preference", {"sft_weight": 0.005}),
    "maximum, sft 0.02": ("maximum-preference", {"sft_weight": 0.02}),
}
"""Row -> method and settings; steps, batches, learning rate and data are equal for all."""


def compare(base: Base, folder: Path, *, num_seeds: int, steps: int) -> dict[str, list[Numbers]]:
    """Trains every row on every kind of labels; each seed also draws its own data."""
    from prefmix.policies.train.jobs import run

    found: dict[str, list[Numbers]] = defaultdict(list)
    for seed in range(num_seeds):
        answers = base.training_answers(seed=seed)
        for kind, label in LABELS.items():
            num_pairs = write_data(folder, answers, concise, label, seed=seed)
            print(f"seed {seed}, {kind}: {num_pairs} pairs", flush=True)
            for name, (method, own) in CONTENDERS.items():
                output = folder / "policy"
                values = shared_settings(folder, output, steps=steps, seed=seed) | own
                if method == "maximum-preference":
                    values["sft_data"] = folder / "sft.jsonl"
                run(build(METHODS[method], values), tell=tell_nothing)
                numbers = base.measured(output, "concise")
                shutil.rmtree(output)
                found[f"{kind}: {name}"].append(numbers)
                tell_numbers(f"{kind}: {name}", numbers, seed=seed)
    return {row: found[row] for row in sorted(found, key=lambda row: row.split(":")[0] != "always")}
