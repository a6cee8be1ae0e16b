"""Pairs are split as known by hand, and every split is a partition."""

import random
from pathlib import Path

import pytest

from prefmix.policies.data.pairs import Rows
from prefmix.policies.train import TrainError
from prefmix.policies.train.splitter import by_prompts, split_pairs


def test_threshold_is_the_smallest_easy_gap() -> None:
    split = split_pairs([0.5, -2.0, 1.0, 0.49], threshold=0.5, quantile=0.5)
    assert (split.easy, split.difficult, split.threshold) == ((0, 2), (1, 3), 0.5)


def test_wrongly_ordered_pair_is_difficult_however_large_its_gap() -> None:
    split = split_pairs([-9.0, 1.0, 2.0, 3.0], threshold=None, quantile=0.25)
    assert split.difficult == (0,)


@pytest.mark.parametrize(("quantile", "num_difficult"), [(0.5, 5), (0.25, 3), (0.99, 9)])
def test_quantile_is_the_difficult_share(quantile: float, num_difficult: int) -> None:
    gaps = [float(i) for i in range(10)]
    random.Random(0).shuffle(gaps)
    split = split_pairs(gaps, threshold=None, quantile=quantile)
    assert len(split.difficult) == num_difficult
    assert sorted(split.easy + split.difficult) == list(range(10))
    assert max(gaps[i] for i in split.difficult) < min(gaps[i] for i in split.easy)


def test_equal_gaps_at_the_border_are_all_easy() -> None:
    split = split_pairs([1.0, 2.0, 2.0, 2.0], threshold=None, quantile=0.5)
    assert split.easy == (1, 2, 3)


@pytest.mark.parametrize(
    ("gaps", "threshold", "which"),
    [([1.0, 1.0], None, "difficult"), ([1.0, 2.0], 0.5, "difficult"), ([1.0, 2.0], 3.0, "easy")],
)
def test_empty_part_is_refused(gaps: list[float], threshold: float | None, which: str) -> None:
    with pytest.raises(TrainError, match=f"no pair is {which}: the reward gaps reach from"):
        split_pairs(gaps, threshold=threshold, quantile=0.5)


def test_pairs_of_one_prompt_stay_together() -> None:
    rows = tuple({"prompt": f"q{i % 10}", "chosen": "a", "rejected": "b"} for i in range(40))
    pairs = Rows(source=Path("p"), rows=rows, names=tuple(map(str, range(40))))
    first, second = by_prompts(pairs, 0.3, seed="s")
    assert sorted(first + second) == list(range(40))
    assert len(first) == 12
    assert {i % 10 for i in first} & {i % 10 for i in second} == set()
    assert by_prompts(pairs, 0.3, seed="s") == (first, second)
    assert by_prompts(pairs, 0.3, seed="other") != (first, second)
    assert [len(side) for side in by_prompts(pairs, 0.001, seed="s")] == [4, 36]
    assert [len(side) for side in by_prompts(pairs.take([0, 10]), 0.5, seed="s")] == [0, 2]
