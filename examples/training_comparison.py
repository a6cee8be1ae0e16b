"""Maximum Preference Optimization beside DPO and IPO at equal steps, on the demo's reference.

    make eval-training        (or: python -m examples.training_comparison --seeds 3)

Pairs are two answers of the reference policy to one prompt, and the shorter is always chosen: the
preference is deterministic, and few pairs are passed over several times. That is the case in which
the KL term of DPO is said to stop acting. Measured are the reward of what was trained for, on
prompts that nothing was trained on, and two KLs: of the policy's answers from the reference, and of
the reference's answers from the policy, which is where forgetting shows.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from policies.demo import CHECKPOINTS, EVALUATION_PROMPTS
from policies.demo.evaluation import measure
from policies.demo.prompts import TRAINING_PROMPTS
from policies.demo.rewards import concise
from policies.demo.sampling import Response, sample_responses, score_responses
from policies.demo.tokenizer import chat_text
from policies.train.settings import METHODS, build
from weights.tables import aligned

REFERENCE = CHECKPOINTS / "reference"
NUM_PAIRS = 512
ANSWERS_PER_PROMPT = 12
OBJECTIVE = "concise"

CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo, beta 0.1": ("dpo", {"beta": 0.1}),
    "dpo, beta 0.3": ("dpo", {"beta": 0.3}),
    "dpo, beta 1": ("dpo", {"beta": 1.0}),
    "ipo, beta 0.1": ("dpo", {"beta": 0.1, "loss": "ipo"}),
    "ipo, beta 1": ("dpo", {"beta": 1.0, "loss": "ipo"}),
    "maximum, sft 0": ("maximum-preference", {"sft_weight": 0}),
    "maximum, sft 0.005": ("maximum-preference", {"sft_weight": 0.005}),
    "maximum, sft 0.02": ("maximum-preference", {"sft_weight": 0.02}),
}
"""Row -> method and settings; steps, batches, learning rate and data are the same for all."""

Numbers = dict[str, float]


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Compare ways to train on deterministic pairs.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), num_seeds=args.seeds, steps=args.steps)
    print(f"\n{table(found)}")


def compare(folder: Path, *, num_seeds: int, steps: int) -> dict[str, list[Numbers]]:
    """Trains every contender from every seed, data included, and measures it."""
    from policies.train.jobs import run

    tokenizer = Tokenizer.from_file(str(REFERENCE / "tokenizer.json"))
    reference = _load(REFERENCE)
    unseen = _draw(reference, tokenizer, EVALUATION_PROMPTS, 4, seed=999)
    found: dict[str, list[Numbers]] = defaultdict(list)
    for seed in range(num_seeds):
        answers = _draw(reference, tokenizer, TRAINING_PROMPTS, ANSWERS_PER_PROMPT, seed=seed)
        write_data(folder, answers, seed=seed)
        for name, (method, own) in CONTENDERS.items():
            output = folder / "policy"
            shared = {
                "base": str(REFERENCE),
                "data": folder / "pairs.jsonl",
                "output": output,
                "seed": seed,
                "steps": steps,
                "batch_pairs": 16,
                "learning_rate": 1e-3,
                "save_steps": steps,
            }
            if method == "maximum-preference":
                shared["sft_data"] = folder / "sft.jsonl"
            run(build(METHODS[method], shared | own))
            numbers = _measured(reference, _load(output), tokenizer, unseen)
            found[name].append(numbers)
            print(f"seed {seed}, {name}: {numbers}", flush=True)
            shutil.rmtree(output)
    return dict(found)


def write_data(folder: Path, answers: Sequence[Response], *, seed: int) -> None:
    """Writes pairs.jsonl, and sft.jsonl of other answers: the last third of every prompt's."""
    rng = random.Random(seed)
    by_context: dict[str, list[str]] = defaultdict(list)
    for answer in answers:
        if answer.text:
            by_context[answer.context].append(answer.text)
    pairs: list[dict[str, str]] = []
    sft: list[dict[str, str]] = []
    for context, texts in by_context.items():
        split = 2 * len(texts) // 3
        sft += [{"prompt": context, "completion": text} for text in texts[split:]]
        for first, second in zip(texts[0:split:2], texts[1:split:2], strict=False):
            if concise(first) != concise(second):
                chosen, rejected = sorted((first, second), key=concise, reverse=True)
                pairs.append({"prompt": context, "chosen": chosen, "rejected": rejected})
    rng.shuffle(pairs)
    for name, rows in (("pairs", pairs[:NUM_PAIRS]), ("sft", sft)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def table(found: Mapping[str, Sequence[Numbers]]) -> str:
    """Mean over seeds ± the largest distance of one from it."""
    columns = list(next(iter(found.values()))[0])
    lines = [["", *columns]]
    for name, runs in found.items():
        cells = []
        for column in columns:
            values = [numbers[column] for numbers in runs]
            mean = statistics.fmean(values)
            cells.append(f"{mean:.2f} ± {max(abs(value - mean) for value in values):.2f}")
        lines.append([name, *cells])
    return aligned(lines)


def _measured(
    reference: Any, policy: Any, tokenizer: Tokenizer, unseen: Sequence[Response]
) -> Numbers:
    policies = {"reference": reference, "policy": policy}
    own = measure(policies, tokenizer, {"policy": 1.0}, responses_per_prompt=4, seed=1000)
    under_policy = score_responses(policy, list(unseen)).tolist()
    forgetting = statistics.fmean(answer.logprob for answer in unseen)
    return {
        OBJECTIVE: own.rewards[OBJECTIVE],
        "KL from reference": own.kl["reference"],
        "KL of reference": round(forgetting - statistics.fmean(under_policy), 4),
        "grammatical": own.grammatical,
    }


def _draw(
    reference: Any, tokenizer: Tokenizer, prompts: Sequence[str], count: int, *, seed: int
) -> list[Response]:
    contexts = [chat_text(prompt) for prompt in prompts for _ in range(count)]
    return sample_responses([reference], tokenizer, contexts, seed=seed)


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


if __name__ == "__main__":
    main()
