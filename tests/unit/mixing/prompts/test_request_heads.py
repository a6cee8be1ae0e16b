"""Heads of a request: what is read of it, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from prefmix.mixing import wire
from prefmix.mixing.prompts.request_heads import RequestHeads


def heads_of(value: Any, num_members: int = 3) -> RequestHeads | None:
    return RequestHeads.of_request({wire.HEADS_KEY: value}, num_members)


def test_shifts_align_prompts_on_the_right() -> None:
    heads = heads_of([[5, 6, 7], [], None])
    assert heads is not None
    assert (heads.longest, heads.shifts_M) == (3, (0, 3, 0))
    assert [None if ids is None else ids.tolist() for ids in heads.ids_M] == [[5, 6, 7], [], None]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "abc",
        {"a": [1]},
        [[1], [2]],
        [[1], [2], "x"],
        [[1], [2], [-1]],
        [[1], [2], [2**31]],
        [[1], [2], [2**64]],
        [[1], [2], [True]],
        [[1], [2], [1.0]],
        [[1], [2], [[1]]],
        [None, None, None],
        [[], [], None],
    ],
)
def test_what_is_no_head_is_no_prompt_of_a_policys_own(value: Any) -> None:
    assert heads_of(value) is None


def test_a_request_without_the_key_has_none() -> None:
    assert RequestHeads.of_request(None, 3) is None
    assert RequestHeads.of_request({}, 3) is None


def test_digests_tell_all_heads_apart() -> None:
    """Tokens move between policies, lists are empty, missing, or longer: no two share blocks."""
    values = [
        [[1], [2], [3]],
        [[1, 2], [], [3]],
        [[], [1, 2], [3]],
        [[1], [2], None],
        [None, [1], [2]],
        [[1], [2], []],
        [[1], [3], [2]],
        [[1, 0], [2], [3]],
    ]
    heads = [heads_of(value) for value in values]
    assert len({each.digest() for each in heads if each is not None}) == len(values)
    again = heads_of(values[0])
    assert again is not None
    assert heads[0] is not None
    assert again.digest() == heads[0].digest()
