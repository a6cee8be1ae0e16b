"""The token ids that all members have in common."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from prefmix.mixing.vocabulary import ATTRIBUTE, CommonVocabulary

SOME = CommonVocabulary(num_rows=10, differing=frozenset({3, 8}), num_never_drawn=4)


def test_size_counts_the_ids_that_can_be_drawn() -> None:
    assert SOME.size == 8
    assert CommonVocabulary(num_rows=10).size == 10


@pytest.mark.parametrize(
    ("ids", "lost"),
    [
        ([], []),
        ([0, 9, 2], []),
        ([8, 1, 3, 8], [8, 3, 8]),
        ([1, 10], [10]),
        ([-1, 4], [-1]),
        ({10: 1.0, 5: 2.0}, [10]),
    ],
)
def test_without_names_the_ids_that_cannot(ids: list[int], lost: list[int]) -> None:
    assert SOME.without(ids) == lost


def test_fewer_rows_leave_a_part_of_it() -> None:
    assert SOME.up_to(10) == SOME.up_to(12) == SOME
    part = SOME.up_to(8)
    assert (part.num_rows, part.differing) == (8, {3})
    # 12 ids are known to some member, before and after.
    assert part.size + part.num_never_drawn == SOME.size + SOME.num_never_drawn == 12


def test_it_travels_in_the_model_config() -> None:
    config = SimpleNamespace()
    assert CommonVocabulary.of_config(config) is None
    SOME.write_into(config)
    config = SimpleNamespace(**json.loads(json.dumps(vars(config))))
    assert ATTRIBUTE in vars(config)
    assert CommonVocabulary.of_config(config) == SOME
