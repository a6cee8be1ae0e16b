"""Splits preference pairs into easy and difficult ones by their reward gap.

Source: Gou and Nguyen 2024, Mixed Preference Optimization, arXiv 2403.19443. The rule (a large gap
is easy, a small one difficult) is the paper's; its threshold and set sizes could not be checked.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from prefmix.policies.data.pairs import Rows
from prefmix.policies.errors import TrainError


@dataclass(frozen=True, kw_only=True)
class Split:
    """Indices of the pairs in each part, ascending; every pair is in exactly one part."""

    easy: tuple[int, ...]
    difficult: tuple[int, ...]
    threshold: float
    """Smallest gap that counts as easy."""


def by_prompts(pairs: Rows, share: float, *, seed: str) -> tuple[list[int], list[int]]:
    """Parts the pairs at random, all those of one prompt to the same side.

    Answers to one prompt are often equal across its pairs, so that a model which was trained on one
    pair would know the other.

    Args:
      pairs: the pairs.
      share: of the prompts, rounded, that goes to the first part; at least one prompt of several.
      seed: of the order.
    Returns: the indices of both parts, ascending.
    """
    prompts = [json.dumps(row["prompt"], sort_keys=True) for row in pairs.rows]
    order = sorted(set(prompts))
    random.Random(seed).shuffle(order)
    count = round(share * len(order))
    if len(order) > 1:
        count = min(max(count, 1), len(order) - 1)
    first = set(order[:count])
    sides = [prompt in first for prompt in prompts]
    return (
        [index for index, side in enumerate(sides) if side],
        [index for index, side in enumerate(sides) if not side],
    )


def split_pairs(gaps: Sequence[float], *, threshold: float | None, quantile: float) -> Split:
    """Splits pairs by gap: easy from `threshold` on, difficult below.

    A gap is reward(chosen) - reward(rejected), with its sign: a pair that the reward model orders
    the other way is difficult, however far apart its rewards are, because its label may be wrong.

    Args:
      gaps: one gap per pair, finite.
      threshold: if None, chosen so that the share `quantile` of the pairs, rounded up, is
        difficult; equal gaps at the border are all easy.
    Raises: TrainError if either part is empty.
    """
    if threshold is None:
        rank = min(math.ceil(quantile * len(gaps)), len(gaps) - 1)
        threshold = sorted(gaps)[rank]
    easy = tuple(i for i, gap in enumerate(gaps) if gap >= threshold)
    difficult = tuple(i for i, gap in enumerate(gaps) if gap < threshold)
    if not easy or not difficult:
        which = "difficult" if easy else "easy"
        raise TrainError(
            f"no pair is {which}: the reward gaps reach from {min(gaps):.4g} to {max(gaps):.4g} "
            f"and the threshold is {threshold:.4g}; give another threshold or quantile"
        )
    return Split(easy=easy, difficult=difficult, threshold=threshold)
