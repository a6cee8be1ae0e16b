"""Trains and writes the sharp demo policies: three adapters of the demo's reference policy.

  python -m prefmix.policies.demo.build_sharp --output policies/demo/sharp --seed 0
  python -m prefmix.policies.demo.build_sharp --output DIR --beta 1      # gentler ones

The demo policies are near their reference, where a mixture of logits and a mean of parameters are
nearly the same. These are trained by DPO with a small beta and a high learning rate, on pairs of
the same kind, and adapt one base, so that one engine serves both ways to mix. `make setup-train`
installs what training needs. It uses one thread: on one machine and one set of versions the seed
fixes every byte.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from prefmix.policies.demo import CHECKPOINTS
from prefmix.policies.demo.reviews.prompts import TRAINING_PROMPTS
from prefmix.policies.demo.reviews.rewards import REWARDS
from prefmix.policies.demo.training.cards import adapter_card
from prefmix.policies.demo.training.evaluation import Measurement, format_table, measure
from prefmix.policies.demo.training.manifest import PACKAGES, write_manifest
from prefmix.policies.demo.training.model import (
    copy_adapter,
    load_adapted,
    load_checkpoint,
    write_cards,
)
from prefmix.policies.demo.training.preference import (
    LABEL_SCALE,
    NUM_RESPONSES,
    draw_pairs,
    draw_reference_responses,
    write_rows,
)
from prefmix.policies.demo.training.recipes import Recipe, sharp_recipe, train
from prefmix.policies.train.progress import quiet_libraries

_EVALUATION_RESPONSES = 8
AVERAGE, MIXTURE = "uniform average", "uniform mixture"
"""Rows of the measurements beside the policies."""


def build(
    output: Path,
    *,
    seed: int,
    recipe: Recipe,
    num_responses: int = NUM_RESPONSES,
    evaluation_responses: int = _EVALUATION_RESPONSES,
) -> dict[str, Measurement]:
    """Trains an adapter for each objective into `output`; returns measurements.

    Args:
      output: folder of the adapters' folders; files of the same name are replaced.
      recipe: of every adapter.
      num_responses: responses of the reference policy a training prompt.
      evaluation_responses: measured responses a held-out prompt.
    """
    torch.set_num_threads(1)
    quiet_libraries()
    base = CHECKPOINTS / "reference"
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    reference = load_checkpoint(base)
    responses = draw_reference_responses(
        reference, tokenizer, TRAINING_PROMPTS, num_responses=num_responses, seed=seed + 1
    )
    policies = {"reference": reference}
    with tempfile.TemporaryDirectory(prefix="prefmix-demo-") as name:
        work = Path(name)
        for offset, (objective, reward) in enumerate(REWARDS.items()):
            pairs = draw_pairs(responses, reward, recipe.num_pairs, seed=seed + 2 + offset)
            write_rows(work / f"{objective}.jsonl", pairs)
            trained = train(objective, recipe, base, work, seed=seed)
            print(f"policy {objective} is trained", flush=True)
            copy_adapter(trained, output / objective)
            policies[objective] = load_adapted(base, output / objective)
    measured = _measured(
        policies, tokenizer, responses_per_prompt=evaluation_responses, seed=seed + 100
    )
    cards = {
        objective: adapter_card(
            objective, measured, recipe, num_responses=len(responses), seed=seed
        )
        for objective in REWARDS
    }
    write_cards(output, cards)
    write_manifest(
        output,
        REWARDS,
        seed=seed,
        settings={
            "preference": {"num_responses": num_responses, "label_scale": LABEL_SCALE},
            "policies": asdict(recipe),
        },
        packages=(*PACKAGES, "peft"),
        measured=measured,
    )
    return measured


def _measured(
    policies: Mapping[str, Any], tokenizer: Tokenizer, **settings: int
) -> dict[str, Measurement]:
    """Measures every policy, and both ways to mix all but the reference with equal weights."""
    equal = {name: 1 / len(REWARDS) for name in REWARDS}
    rows: dict[str, dict[str, float]] = {name: {name: 1.0} for name in policies}
    found = {name: measure(policies, tokenizer, row, **settings) for name, row in rows.items()}
    found[MIXTURE] = measure(policies, tokenizer, equal, **settings)
    own = measure(
        {**policies, AVERAGE: _average([policies[name] for name in REWARDS])},
        tokenizer,
        {AVERAGE: 1.0},
        **settings,
    )
    own.kl.pop(AVERAGE)
    return found | {AVERAGE: own}


def _average(models: list[Any]) -> Any:
    """One model whose parameters are the mean of the models'."""
    average = load_checkpoint(CHECKPOINTS / "reference")
    states = [model.state_dict() for model in models]
    average.load_state_dict(
        {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    )
    return average


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Train and write the sharp demo policies.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beta", type=float, help="DPO's beta; smaller is sharper")
    parser.add_argument("--learning-rate", type=float, help="highest learning rate")
    parser.add_argument("--steps", type=int, help="optimiser steps")
    args = parser.parse_args()
    given = {
        name: getattr(args, name)
        for name in ("beta", "learning_rate", "steps")
        if getattr(args, name) is not None
    }
    measured = build(args.output, seed=args.seed, recipe=sharp_recipe(**given))
    print(f"\n{format_table(measured)}\n\nwrote {args.output}")


if __name__ == "__main__":
    main()
