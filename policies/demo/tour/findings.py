"""The texts that the tour prints once all answers are there: table, examples, conclusion."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from statistics import fmean, variance

from prefmix.policies.demo import REWARDS
from prefmix.policies.demo.tour.questions import (
    EXAMPLE_PROMPT,
    NEGATIVE_PROMPT,
    NUM_EXAMPLES,
    OBJECTIVES,
    Answers,
    Row,
)
from prefmix.policies.demo.tour.terminal import line_width


def table(answers: Mapping[Row, Answers]) -> str:
    """Weights, mean rewards and length, one line a row; * marks the best of each objective."""
    members = list(next(iter(answers.values())).weights)
    best = _best(answers)
    num_texts = len(next(iter(answers.values())).texts)
    lines = [
        f"{'':<16}{'weights':^{5 * len(members)}}  {f'mean reward of {num_texts} answers':^30}",
        f"{'':<16}{''.join(f'{name[:3]:>5}' for name in members)}  "
        f"{''.join(f'{name:>10}' for name in OBJECTIVES)}{'words':>8}",
    ]
    lines.append("-" * len(lines[-1]))
    for row, answer in answers.items():
        weights = "".join(f"{answer.weights[name]:>5.2g}" for name in members)
        rewards = "".join(
            f"{value:>+9.2f}{'*' if best[name] is row else ' '}"
            for name, value in answer.mean_rewards().items()
        )
        lines.append(f"{row.name:<16}{weights}  {rewards}{answer.mean_num_words():>8.0f}")
    return "\n".join(line.rstrip() for line in lines)


def _best(answers: Mapping[Row, Answers]) -> dict[str, Row]:
    """Objective -> the row with the highest mean reward."""
    means = {row: answer.mean_rewards() for row, answer in answers.items()}
    return {name: max(means, key=lambda row: means[row][name]) for name in OBJECTIVES}


def examples(answers: Mapping[Row, Answers]) -> str:
    """Each row's answer to one prompt, in two columns."""
    indent = " " * 18
    texts = [
        textwrap.fill(
            " ".join(answer.typical_example().split()),
            line_width(),
            initial_indent=f"  {row.name:<16}",
            subsequent_indent=indent,
        )
        for row, answer in answers.items()
    ]
    return "\n".join([f'"{EXAMPLE_PROMPT}", the most typical of {NUM_EXAMPLES} answers:', *texts])


def conclusion(answers: Mapping[Row, Answers]) -> str:
    """Sentences on what the trained policies' table shows, if they hold."""
    best = _best(answers)
    sentences = []
    if all(best[name].name == name for name in OBJECTIVES):
        sentences.append("Each policy alone is the best at its own objective (*).")
    reference = next(answer for row, answer in answers.items() if row.name == "reference")
    better = [
        row.name
        for row, answer in answers.items()
        if all(_clearly_higher(answer, reference, name) for name in OBJECTIVES)
    ]
    if better:
        sentences.append(
            f"Clearly above the reference policy in every objective: {', '.join(better)}."
        )
    sentences.append(
        "Between the rows nothing was trained or loaded: one engine served all of them, and only "
        "the weights in the requests differ."
    )
    return " ".join(sentences)


def conclusion_of_prompts(answers: Mapping[Row, Answers]) -> str:
    """Sentences on what the table of one model's prompts shows, if they hold."""
    best = _best(answers)
    by_name = {row.name: answer for row, answer in answers.items()}
    sentences = []
    if all(best[name].name == name for name in OBJECTIVES):
        sentences.append("Each prompt alone is the best at its own objective (*).")
    if _clearly_higher(by_name["negative prompt"], by_name["no prompt"], "positive"):
        sentences.append(
            f'The negative prompt, "{NEGATIVE_PROMPT}" with weight -1, makes answers more positive.'
        )
    sentences.append(
        "No policy was trained for it: one model with three prompts, read once a token."
    )
    return " ".join(sentences)


def _clearly_higher(answers: Answers, others: Answers, objective: str) -> bool:
    """True if the mean reward is higher by more than two standard errors of the difference."""
    rewards, baseline = (
        [REWARDS[objective](text) for text in texts] for texts in (answers.texts, others.texts)
    )
    error = math.sqrt(variance(rewards) / len(rewards) + variance(baseline) / len(baseline))
    return fmean(rewards) - fmean(baseline) > 2 * error
