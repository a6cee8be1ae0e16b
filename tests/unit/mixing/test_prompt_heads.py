"""Prompts are split after the last token in which they differ."""

from __future__ import annotations

import random

import pytest

from prefmix.mixing.prompt_heads import split_prompts


@pytest.mark.parametrize(
    ("prompts", "longest", "heads"),
    [
        ([[5, 1, 2], [6, 7, 1, 2]], 1, ([5], [6, 7])),
        ([[1, 2], [6, 7, 1, 2]], 1, ([], [6, 7])),
        ([[1, 2], [1, 2]], 0, None),
        ([None, [1, 2], None], 1, None),
        ([None, [1, 2], [3, 2]], 1, (None, [1], [3])),
        ([[1, 9, 2], [1, 8, 2]], 0, ([1, 9], [1, 8])),
        ([[1], [2, 3]], 1, ([1], [2, 3])),
    ],
)
def test_heads_hold_all_that_differs(
    prompts: list[list[int] | None], longest: int, heads: object
) -> None:
    split = split_prompts(prompts)
    assert (split.longest, split.heads_M) == (longest, heads)


def test_heads_and_the_longest_prompts_tail_give_every_prompt_back() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        tail = [rng.randrange(3) for _ in range(rng.randrange(5))]
        prompts = [
            [rng.randrange(3) for _ in range(rng.randrange(1, 5))] + tail
            if rng.random() < 0.8
            else None
            for _ in range(rng.randrange(1, 5))
        ]
        if all(each is None for each in prompts):
            continue
        split = split_prompts(prompts)
        whole = prompts[split.longest]
        assert whole is not None
        assert len(whole) == max(split.lengths_M)
        assert split.lengths_M == tuple(len(each or ()) for each in prompts)
        if split.heads_M is None:
            assert all(each in (None, whole) for each in prompts)
            continue
        head = split.heads_M[split.longest]
        assert head is not None
        shared = whole[len(head) :]
        for own, each in zip(split.heads_M, prompts, strict=True):
            assert each == (None if own is None else own + shared)
        lasts = {own[-1] if own else None for own in split.heads_M if own is not None}
        assert len(lasts) > 1, "nothing that all have in common is left in the heads"


def test_a_growing_conversation_keeps_its_heads() -> None:
    """The heads name cached blocks, which other heads would not find again."""
    systems = [[7, 8, 9], [7, 9], []]
    turns, found = [1, 2, 3], set()
    for _ in range(5):
        split = split_prompts([[*system, *turns] for system in systems])
        assert split.heads_M is not None
        found.add(tuple(tuple(head or ()) for head in split.heads_M))
        turns = [*turns, 4, 5, 6]
    assert len(found) == 1


def test_long_prompts_are_split_at_once() -> None:
    """A loop over tokens would hold up every other request of the process."""
    text = list(range(1_000_000))
    split = split_prompts([[1, *text], [2, 3, *text], None])
    assert split.heads_M == ([1], [2, 3], None)
