"""Trains and writes the instructed demo policy, which follows instructions, and one adapter of it.

  python -m prefmix.policies.demo.build_instructed --output policies/demo/instructed --seed 0

The instructed policy is the demo's reference, trained further on reviews whose system messages
describe them: one model with a prompt for each objective is a mixture. The adapter stands beside
such prompts in docs/prompts.md. `make setup-train` installs what training needs. It uses one
thread: on one machine and one set of versions the seed fixes every byte.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from prefmix.policies.demo import CHECKPOINTS
from prefmix.policies.demo.reviews.grammar import sample_reviews
from prefmix.policies.demo.reviews.prompts import EVALUATION_PROMPTS, TRAINING_PROMPTS
from prefmix.policies.demo.reviews.rewards import REWARDS
from prefmix.policies.demo.reviews.styles import STYLES
from prefmix.policies.demo.training.evaluation import Measurement, format_table, measure_texts
from prefmix.policies.demo.training.instructed import make_instructed_examples
from prefmix.policies.demo.training.instructed_cards import instructed_adapter_card, instructed_card
from prefmix.policies.demo.training.manifest import PACKAGES, write_manifest
from prefmix.policies.demo.training.model import (
    copy_adapter,
    load_adapted,
    load_checkpoint,
    round_to_bfloat16,
    save_checkpoint,
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
from prefmix.policies.demo.training.reference import ReferenceConfig, train_reference
from prefmix.policies.demo.training.sampling import sample_responses
from prefmix.policies.demo.training.tokenizer import chat_text
from prefmix.policies.train.progress import quiet_libraries

BASE, ADAPTER = "base", "polite"
"""Folders of the instructed policy and of its adapter; the latter is an objective, too."""
NO_INSTRUCTION, WITH_ADAPTER = "no instruction", "no instruction, adapter polite"
"""Rows of the measurements beside the instructions."""
CONFIG = ReferenceConfig(num_steps=5000, learning_rate=4e-3, embedding_learning_rate=1.5e-2)
"""The training of the instructed policy."""
RECIPE = sharp_recipe(beta=1.0)
"""The training of the adapter."""
_EVALUATION_RESPONSES = 8
_SEED_OF_REVIEWS = 1000
"""Added to the seed, since the reference policy has seen the reviews of the seed itself."""


def build(
    output: Path,
    *,
    seed: int,
    config: ReferenceConfig = CONFIG,
    recipe: Recipe = RECIPE,
    num_responses: int = NUM_RESPONSES,
    evaluation_responses: int = _EVALUATION_RESPONSES,
) -> dict[str, Measurement]:
    """Trains policy and adapter into `output`, replacing their files; returns measurements.

    Args:
      config: of the instructed policy's training.
      recipe: of the adapter.
      num_responses: responses of the instructed policy a training prompt, for the adapter.
      evaluation_responses: measured responses a held-out prompt.
    """
    torch.set_num_threads(1)
    quiet_libraries()
    reference = CHECKPOINTS / "reference"
    tokenizer = Tokenizer.from_file(str(reference / "tokenizer.json"))
    policy = load_checkpoint(reference)
    reviews = sample_reviews(config.num_steps * config.batch_examples, seed=seed + _SEED_OF_REVIEWS)
    examples = make_instructed_examples(reviews, tokenizer, seed=seed)
    loss = train_reference(policy, examples, config, seed=seed)
    round_to_bfloat16(policy)
    print(f"the instructed policy is trained, last loss {loss:.4f} nats a token", flush=True)
    save_checkpoint(policy, tokenizer, output / BASE, card="")
    responses = draw_reference_responses(
        policy, tokenizer, TRAINING_PROMPTS, num_responses=num_responses, seed=seed + 1
    )
    with tempfile.TemporaryDirectory(prefix="prefmix-demo-") as name:
        work = Path(name)
        pairs = draw_pairs(responses, REWARDS[ADAPTER], recipe.num_pairs, seed=seed + 2)
        write_rows(work / f"{ADAPTER}.jsonl", pairs)
        trained = train(ADAPTER, recipe, output / BASE, work, seed=seed)
        copy_adapter(trained, output / ADAPTER)
    print(f"adapter {ADAPTER} is trained", flush=True)
    measured = _measured(
        policy,
        load_adapted(output / BASE, output / ADAPTER),
        tokenizer,
        responses_per_prompt=evaluation_responses,
        seed=seed + 100,
    )
    cards = {
        BASE: instructed_card(measured, config, seed=seed),
        ADAPTER: instructed_adapter_card(
            ADAPTER, measured, recipe, num_responses=len(responses), seed=seed
        ),
    }
    write_cards(output, cards)
    write_manifest(
        output,
        cards,
        seed=seed,
        settings={
            "instructed": asdict(config),
            "preference": {"num_responses": num_responses, "label_scale": LABEL_SCALE},
            "adapter": asdict(recipe),
        },
        packages=(*PACKAGES, "peft"),
        measured=measured,
    )
    return measured


def _measured(
    policy: Any, adapted: Any, tokenizer: Tokenizer, *, responses_per_prompt: int, seed: int
) -> dict[str, Measurement]:
    """Rewards under the first wording of every style, under none, and with the adapter."""
    rows = {NO_INSTRUCTION: (policy, ""), WITH_ADAPTER: (adapted, "")} | {
        style.wordings[0]: (policy, style.wordings[0]) for style in STYLES.values()
    }
    found = {}
    for name, (model, system) in rows.items():
        contexts = [
            chat_text(prompt, system=system)
            for prompt in EVALUATION_PROMPTS
            for _ in range(responses_per_prompt)
        ]
        responses = sample_responses([model], tokenizer, contexts, seed=seed)
        found[name] = measure_texts([response.text for response in responses], kl={})
    return found


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Train and write the instructed demo policy.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    measured = build(args.output, seed=args.seed)
    print(f"\n{format_table(measured)}\n\nwrote {args.output}")


if __name__ == "__main__":
    main()
