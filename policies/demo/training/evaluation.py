"""Measures policies and mixtures on held-out prompts: rewards, length, grammaticality, KL."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from prefmix.policies.demo.reviews.grammar import is_grammatical
from prefmix.policies.demo.reviews.prompts import EVALUATION_PROMPTS
from prefmix.policies.demo.reviews.rewards import REWARDS
from prefmix.policies.demo.training.sampling import sample_responses, score_responses
from prefmix.policies.demo.training.tokenizer import chat_text

_DIGITS = 4
"""Digits of every measured number, rounded once, so that cards and manifest agree."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Means over responses sampled at temperature 1."""

    num_responses: int
    rewards: dict[str, float]
    """Objective -> mean reward."""
    reward_errors: dict[str, float]
    """Objective -> standard error of that mean."""
    num_words: float
    grammatical: float
    """Fraction of responses that the grammar could have written, word for word."""
    kl: dict[str, float]
    """Policy -> KL(this || policy) in nats a response, reference included."""


def measure(
    policies: Mapping[str, Any],
    tokenizer: Tokenizer,
    weights: Mapping[str, float],
    *,
    responses_per_prompt: int,
    seed: int,
) -> Measurement:
    """Measures the log-linear mixture of some policies; a policy of weight 1 is measured alone.

    Args:
      policies: all policies by name, "reference" included; KL is reported to each.
      weights: mixture weights of the policies that take part.
    """
    contexts = [chat_text(p) for p in EVALUATION_PROMPTS for _ in range(responses_per_prompt)]
    responses = sample_responses(
        [policies[name] for name in weights],
        tokenizer,
        contexts,
        seed=seed,
        weights=list(weights.values()),
    )
    texts = [response.text for response in responses]
    drawn = statistics.fmean(response.logprob for response in responses)
    kl = {
        name: 0.0
        if weights == {name: 1.0}
        else drawn - score_responses(policy, responses).mean().item()
        for name, policy in policies.items()
    }
    return measure_texts(texts, kl)


def measure_texts(texts: Sequence[str], kl: Mapping[str, float]) -> Measurement:
    """Measures texts; `kl` is what the Measurement holds, unrounded."""
    rewards, errors = {}, {}
    for objective, reward in REWARDS.items():
        values = [reward(text) for text in texts]
        rewards[objective] = round(statistics.fmean(values), _DIGITS)
        errors[objective] = round(statistics.stdev(values) / len(values) ** 0.5, _DIGITS)
    return Measurement(
        num_responses=len(texts),
        rewards=rewards,
        reward_errors=errors,
        num_words=round(statistics.fmean(len(text.split()) for text in texts), _DIGITS),
        grammatical=round(statistics.fmean(map(is_grammatical, texts)), _DIGITS),
        kl={name: round(value, _DIGITS) for name, value in kl.items()},
    )


def format_table(measurements: Mapping[str, Measurement]) -> str:
    """Formats measurements as a Markdown table, one row per policy or mixture."""
    policies = list(next(iter(measurements.values())).kl)
    header = ["policy", *REWARDS, "words", "grammatical", *(f"KL to {name}" for name in policies)]
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    for name, measured in measurements.items():
        cells: Sequence[str] = [
            name,
            *(f"{measured.rewards[objective]:+.3f}" for objective in REWARDS),
            f"{measured.num_words:.1f}",
            f"{measured.grammatical:.2f}",
            *(f"{measured.kl[policy]:.2f}" for policy in policies),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
