"""Trains and writes the demo policies: data, tokenizer, reference, three policies, cards, manifest.

  python -m prefmix.policies.demo.build --output policies/demo/checkpoints --seed 0
  python -m prefmix.policies.demo.build --output DIR --quick     # a smoke test

The reference is trained here, the other policies from it by `prefmix train` (`make setup-train`
installs what they need). Training uses one thread: on one machine and one set of versions the seed
fixes every byte.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from prefmix.policies.demo.reviews.grammar import sample_reviews
from prefmix.policies.demo.reviews.prompts import TRAINING_PROMPTS
from prefmix.policies.demo.reviews.rewards import REWARDS
from prefmix.policies.demo.training.cards import policy_card, reference_card
from prefmix.policies.demo.training.evaluation import Measurement, format_table, measure
from prefmix.policies.demo.training.manifest import PACKAGES, write_manifest
from prefmix.policies.demo.training.model import (
    load_checkpoint,
    new_model,
    round_to_bfloat16,
    save_checkpoint,
)
from prefmix.policies.demo.training.preference import (
    LABEL_SCALE,
    NUM_RESPONSES,
    draw_pairs,
    draw_reference_responses,
    sft_rows,
    write_rows,
)
from prefmix.policies.demo.training.recipes import RECIPES, Recipe, train
from prefmix.policies.demo.training.reference import ReferenceConfig, make_examples, train_reference
from prefmix.policies.demo.training.tokenizer import train_tokenizer
from prefmix.policies.train.progress import quiet_libraries

QUICK_REFERENCE = ReferenceConfig(num_steps=800)
QUICK_RECIPES = {name: recipe.shortened(3) for name, recipe in RECIPES.items()}
_QUICK_RESPONSES = 12
_EVALUATION_RESPONSES = 16
_QUICK_EVALUATION_RESPONSES = 4


@contextmanager
def _stage(name: str) -> Iterator[None]:
    print(f"{name} ...", flush=True)
    start = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


def build(
    output: Path,
    *,
    seed: int,
    reference_config: ReferenceConfig,
    recipes: Mapping[str, Recipe],
    num_responses: int,
    evaluation_responses: int,
) -> dict[str, Measurement]:
    """Builds all policies into `output`, replacing files of the same name; returns measurements.

    Args:
      num_responses: responses of the reference policy a training prompt.
      evaluation_responses: measured responses a held-out prompt.
    """
    torch.set_num_threads(1)
    quiet_libraries()
    with _stage("corpus and tokenizer"):
        num_reviews = reference_config.num_steps * reference_config.batch_examples
        reviews = sample_reviews(num_reviews, seed=seed)
        tokenizer = train_tokenizer(f"{r.prompt} {r.text}" for r in reviews)
        examples = make_examples(reviews, tokenizer, seed=seed)

    with _stage("reference policy"):
        reference = new_model(tokenizer, seed=seed)
        loss = train_reference(reference, examples, reference_config, seed=seed)
        round_to_bfloat16(reference)
        print(f"  {num_parameters(reference):,} parameters, last loss {loss:.4f} nats a token")

    with _stage("preference data"):
        responses = draw_reference_responses(
            reference, tokenizer, TRAINING_PROMPTS, num_responses=num_responses, seed=seed + 1
        )

    policies = {"reference": reference}
    with tempfile.TemporaryDirectory(prefix="prefmix-demo-") as name:
        work = Path(name)
        save_checkpoint(reference, tokenizer, work / "base", card="")
        write_rows(work / "sft.jsonl", sft_rows(responses))
        for offset, (objective, reward) in enumerate(REWARDS.items()):
            recipe = recipes[objective]
            with _stage(f"policy {objective}, {recipe.method}"):
                pairs = draw_pairs(responses, reward, recipe.num_pairs, seed=seed + 2 + offset)
                write_rows(work / f"{objective}.jsonl", pairs)
                folder = train(objective, recipe, work / "base", work, seed=seed)
                policies[objective] = load_checkpoint(folder)

    with _stage("evaluation"):
        rows: dict[str, dict[str, float]] = {name: {name: 1.0} for name in policies}
        rows["uniform mixture"] = {objective: 1 / len(REWARDS) for objective in REWARDS}
        measured = {
            name: measure(
                policies,
                tokenizer,
                weights,
                responses_per_prompt=evaluation_responses,
                seed=seed + 100,
            )
            for name, weights in rows.items()
        }

    cards = {
        "reference": reference_card(
            measured, reference_config, num_parameters=num_parameters(reference), seed=seed
        )
    } | {
        objective: policy_card(
            objective, measured, recipes[objective], num_responses=len(responses), seed=seed
        )
        for objective in REWARDS
    }
    settings = {
        "reference": asdict(reference_config),
        "preference": {"num_responses": num_responses, "label_scale": LABEL_SCALE},
        "policies": {name: asdict(recipe) for name, recipe in recipes.items()},
    }
    write_output(output, policies, tokenizer, cards, measured, settings, seed=seed)
    return measured


def num_parameters(model: Any) -> int:
    """Number of parameters; tied parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def write_output(
    output: Path,
    policies: dict[str, Any],
    tokenizer: Tokenizer,
    cards: dict[str, str],
    measured: dict[str, Measurement],
    settings: dict[str, Any],
    *,
    seed: int,
) -> None:
    """Writes one folder per policy, and manifest.json with the hash of every file in them."""
    for name, policy in policies.items():
        save_checkpoint(policy, tokenizer, output / name, card=cards[name])
    write_manifest(
        output, policies, seed=seed, settings=settings, packages=PACKAGES, measured=measured
    )


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Train and write the demo policies.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="about a minute, poor text")
    args = parser.parse_args()
    start = time.perf_counter()
    measured = build(
        args.output,
        seed=args.seed,
        reference_config=QUICK_REFERENCE if args.quick else ReferenceConfig(),
        recipes=QUICK_RECIPES if args.quick else RECIPES,
        num_responses=_QUICK_RESPONSES if args.quick else NUM_RESPONSES,
        evaluation_responses=_QUICK_EVALUATION_RESPONSES if args.quick else _EVALUATION_RESPONSES,
    )
    print(f"\n{format_table(measured)}\n")
    print(f"wrote {args.output} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
