"""Preference pairs for the demo's objectives: two responses of the reference policy to one prompt.

The chosen response is drawn from the Bradley-Terry law of the reward gap, not by the sign of the
gap. The optimum of DPO is then a finite tilt of the reference policy, and its log ratio is close to
linear in the reward.
"""

import json
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from prefmix.policies.demo.training.sampling import Response, sample_responses
from prefmix.policies.demo.training.tokenizer import chat_text, continuation_text

NUM_RESPONSES = 32
"""Reference responses a prompt."""
LABEL_SCALE = 6.0
"""P(first is chosen) = sigmoid(LABEL_SCALE * reward gap / reward standard deviation)."""


def draw_reference_responses(
    reference: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    num_responses: int,
    seed: int,
) -> list[Response]:
    """Draws responses to all prompts as chats, and to every fourth prompt also without markup."""
    contexts = [chat_text(prompt) for prompt in prompts] + list(prompts[::4])
    repeated = [context for context in contexts for _ in range(num_responses)]
    return sample_responses([reference], tokenizer, repeated, seed=seed)


def draw_pairs(
    responses: Sequence[Response],
    reward: Callable[[str], float],
    num_pairs: int,
    *,
    label_scale: float = LABEL_SCALE,
    seed: int,
) -> list[dict[str, str]]:
    """Draws pairs of different responses to one context, labels included, in TRL's format."""
    rng = random.Random(seed)
    scale = label_scale / statistics.stdev(reward(response.text) for response in responses)
    by_context: dict[str, list[str]] = defaultdict(list)
    for response in responses:
        if response.text:
            by_context[response.context].append(response.text)
    groups = [(context, texts) for context, texts in by_context.items() if len(set(texts)) > 1]
    pairs: list[dict[str, str]] = []
    while len(pairs) < num_pairs:
        context, texts = rng.choice(groups)
        first, second = rng.sample(texts, k=2)
        margin = scale * (reward(first) - reward(second))
        is_first_chosen = rng.random() < 1 / (1 + math.exp(-margin))
        if first == second:
            continue
        chosen, rejected = (first, second) if is_first_chosen else (second, first)
        pairs.append(
            {
                "prompt": context,
                "chosen": continuation_text(context, chosen),
                "rejected": continuation_text(context, rejected),
            }
        )
    return pairs


def sft_rows(responses: Sequence[Response]) -> list[dict[str, str]]:
    """The responses as SFT rows, which keep a policy close to the reference."""
    return [
        {"prompt": r.context, "completion": continuation_text(r.context, r.text)}
        for r in responses
        if r.text
    ]


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Writes JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
