"""The verdict of an evaluation in sentences: whether a mixture is worth its cost.

All comparisons use the smallest win rate over the objectives. A difference counts if its 95 %
interval does not contain 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefmix.weights.evaluation.both_ways import pairs, rule_of_thumb
from prefmix.weights.evaluation.evaluation import Evaluation


def verdict(found: Evaluation) -> list[str]:
    """One or two sentences on each question that the rows can answer."""
    mixtures = [index for index, row in enumerate(found.rows) if row.is_mixture]
    if not mixtures:
        return ["No mixture was measured.", *_without_numbers(found)]
    answers = [_best_against_best(found, mixtures), _against_members(found, mixtures)]
    rule = rule_of_thumb(found)
    answers += [*_against_averages(found), *([] if rule is None else [rule])]
    return [*answers, *_without_numbers(found)]


def _without_numbers(found: Evaluation) -> list[str]:
    """Says how much each objective leaves out, which no table shows."""
    missing_O = np.isnan(found.rewards_RPJO).sum(axis=(0, 1, 2))
    total = found.rewards_RPJO[..., 0].size
    return [
        f"{objective} has no number for {count} of {total} answers; they are left out."
        for objective, count in zip(found.objectives, missing_O, strict=True)
        if count
    ]


def beats_its_members(found: Evaluation) -> bool:
    """True if the best mixture is shown to beat the best single policy."""
    mixtures = [index for index, row in enumerate(found.rows) if row.is_mixture]
    if not mixtures:
        return False
    best = _best(found, mixtures)
    return found.lead(best, _best(found, _singles(found)))[1] > 0


def _best_against_best(found: Evaluation, mixtures: Sequence[int]) -> str:
    best, rival = _best(found, mixtures), _best(found, _singles(found))
    beats = "beats" if beats_its_members(found) else "is not shown to beat"
    smallest_R = [value for value, _ in found.smallest_R]
    return (
        f"The best mixture, {found.rows[best].name}, {beats} the best single policy, "
        f"{found.rows[rival].name}, in the smallest win rate: {smallest_R[best]:.3f} "
        f"against {smallest_R[rival]:.3f}, difference {_signed(found.lead(best, rival))}."
        + (
            " The best of several rows was picked on these prompts, which flatters it."
            if len(mixtures) > 1
            else ""
        )
    )


def _against_members(found: Evaluation, mixtures: Sequence[int]) -> str:
    """Compares each mixture with the best of its members."""
    rows = {row.taking_part[0]: i for i, row in enumerate(found.rows) if row.is_single}
    failing = []
    for index in mixtures:
        own = [rows[name] for name in found.rows[index].taking_part if name in rows]
        if own and found.lead(index, _best(found, own))[1] <= 0:
            failing.append(found.rows[index].name)
    if not failing:
        return "Every mixture beats each of its members."
    return (
        f"{len(failing)} of {len(mixtures)} mixtures {'is' if len(failing) == 1 else 'are'} not "
        f"shown to beat the best of their own members: {', '.join(failing)}."
    )


def _against_averages(found: Evaluation) -> list[str]:
    both = pairs(found)
    if not both:
        return []
    named = [pair for pair in both if not pair.of_grid] or both
    differences = "; ".join(f"{pair.name} {_signed(pair.smallest)}" for pair in named)
    count = sum(pair.differs for pair in both)
    return [
        f"Mixture minus the parameter average at the same weights: {differences}.",
        f"In {count} of {len(both)} pairs a mean reward differs"
        + (
            "; each of the intervals has its own 5 % of error."
            if len(both) * len(found.objectives) > 1
            else "."
        ),
    ]


def _singles(found: Evaluation) -> list[int]:
    return [index for index, row in enumerate(found.rows) if row.is_single]


def _best(found: Evaluation, rows: Sequence[int]) -> int:
    return max(rows, key=lambda index: found.smallest_R[index][0])


def _signed(lead: tuple[float, float, float]) -> str:
    difference, low, high = lead
    return f"{difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}"
