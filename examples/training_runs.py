"""Shared parts of the comparisons of training methods: base policy, pairs, measurements."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from prefmix.policies.demo import CHECKPOINTS, EVALUATION_PROMPTS
from prefmix.policies.demo.reviews.prompts import TRAINING_PROMPTS
from prefmix.policies.demo.training.evaluation import measure
from prefmix.policies.demo.training.preference import write_rows
from prefmix.policies.demo.training.sampling import Response, sample_responses, score_responses
from prefmix.policies.demo.training.tokenizer import chat_text

REFERENCE = CHECKPOINTS / "reference"
ANSWERS_PER_PROMPT = 12
BATCH_PAIRS = 16
LEARNING_RATE = 1e-3

Numbers = dict[str, float]
Reward = Callable[[str], float]
Label = Callable[[float, random.Random], bool]
"""(reward gap of first and second answer, randomness) -> True if the first is labelled better."""


def deterministic(gap: float, rng: random.Random) -> bool:
    """Labels that always choose the better answer."""
    return gap > 0


def bradley_terry(scale: float) -> Label:
    """Labels that choose the better answer with probability sigmoid(scale * gap)."""
    return lambda gap, rng: rng.random() < 1 / (1 + math.exp(-scale * gap))


def flipped(share: float) -> Label:
    """Deterministic labels, of which a share is flipped."""
    return lambda gap, rng: (gap > 0) != (rng.random() < share)


class Base:
    """The demo's reference policy: start of all training, and baseline of the measurements."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_file(str(REFERENCE / "tokenizer.json"))
        self.policy = _load(REFERENCE)
        self._unseen = self._draw(EVALUATION_PROMPTS, 4, seed=999)

    def training_answers(self, *, seed: int) -> list[Response]:
        """Answers of the base to the training prompts."""
        return self._draw(TRAINING_PROMPTS, ANSWERS_PER_PROMPT, seed=seed)

    def measured(self, folder: Path, objective: str) -> Numbers:
        """Reward and KLs of a trained policy, in nats an answer, on held-out prompts.

        "KL from reference" is KL(policy || reference) on the policy's own answers; "KL of
        reference" is KL(reference || policy) on the reference's answers, which shows forgetting.
        """
        trained = _load(folder)
        policies = {"reference": self.policy, "policy": trained}
        own = measure(policies, self.tokenizer, {"policy": 1.0}, responses_per_prompt=4, seed=1000)
        under_policy = score_responses(trained, self._unseen).tolist()
        own_logprob = statistics.fmean(answer.logprob for answer in self._unseen)
        return {
            objective: own.rewards[objective],
            "KL from reference": own.kl["reference"],
            "KL of reference": round(own_logprob - statistics.fmean(under_policy), 4),
            "grammatical": own.grammatical,
        }

    def _draw(self, prompts: Sequence[str], count: int, *, seed: int) -> list[Response]:
        contexts = [chat_text(prompt) for prompt in prompts for _ in range(count)]
        return sample_responses([self.policy], self.tokenizer, contexts, seed=seed)


def write_data(
    folder: Path, answers: Sequence[Response], reward: Reward, label: Label, *, seed: int
) -> int:
    """Writes pairs.jsonl, and sft.jsonl with other answers: the last third of every prompt.

    Returns: the number of pairs; two answers of equal reward make no pair.
    """
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
            gap = reward(first) - reward(second)
            if gap == 0:
                continue
            chosen, rejected = (first, second) if label(gap, rng) else (second, first)
            pairs.append({"prompt": context, "chosen": chosen, "rejected": rejected})
    rng.shuffle(pairs)
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "sft.jsonl", sft)
    return len(pairs)


def shared_settings(folder: Path, output: Path, *, steps: int, seed: int) -> dict[str, Any]:
    """The settings that all runs share, whatever their method."""
    return {
        "base": str(REFERENCE),
        "data": folder / "pairs.jsonl",
        "output": output,
        "seed": seed,
        "steps": steps,
        "batch_pairs": BATCH_PAIRS,
        "learning_rate": LEARNING_RATE,
        "save_steps": steps,
    }


def read_pairs(folder: Path) -> list[dict[str, str]]:
    """The rows of pairs.jsonl."""
    lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def tell_nothing(line: str) -> None:
    """Ignores the lines of stages; a comparison prints one line per run."""


def tell_numbers(row: str, numbers: Numbers, *, seed: int) -> None:
    """Prints one line on a run."""
    told = ", ".join(f"{name} {value:.2f}" for name, value in numbers.items())
    print(f"seed {seed}, {row}: {told}", flush=True)


def table(found: Mapping[str, Sequence[Numbers]]) -> str:
    """Mean ± standard deviation over seeds, as Markdown; a missing number is an empty cell.

    Args:
      found: "labels: method" -> numbers of every seed; the rows of the same labels together.
    """
    columns = list(dict.fromkeys(name for runs in found.values() for name in runs[0]))
    lines = [["labels", "method", *columns]]
    for name, runs in found.items():
        labels, _, method = name.partition(": ")
        shown = "" if labels in (line[0] for line in lines) else labels
        cells = [_cell([run[column] for run in runs if column in run]) for column in columns]
        lines.append([shown, method, *cells])
    return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the heading first, as a Markdown table that is also legible as text."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.2f} ± {spread:.2f}"


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
