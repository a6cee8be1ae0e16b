"""A pass of a shared trunk: its rows, and how much of each adapter each of them gets."""

from __future__ import annotations

import pytest
import torch

from prefmix.mixing.models.stack import Stack

CPU = torch.device("cpu")
WIDE = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
"""Low-rank inputs of two adapters of rank 2."""


def stack(*, takes_any_rows: bool = True) -> Stack:
    """Two adapters and a reference, which is member 2."""
    return Stack(
        num_members=3, adapter_members=(0, 1), max_rows=9, takes_any_rows=takes_any_rows, device=CPU
    )


def scaled(stacked: Stack, num_rows: int) -> list[list[float]]:
    return stacked.scaled(WIDE.repeat(num_rows, 1)).tolist()


def test_rows_have_their_own_members_adapter_and_the_references_none() -> None:
    stacked = stack()
    stacked.run([0, 1, 2], [1, 2, 1])
    first, second = [1.0, 10.0, 0.0, 0.0], [0.0, 0.0, 100.0, 1000.0]
    assert scaled(stacked, 4) == [first, second, second, [0.0] * 4]
    stacked.run([1, 0], [1, 1])  # nothing is left of the pass before
    assert scaled(stacked, 2) == [second, first]


def test_members_that_are_the_base_itself_stand_anywhere() -> None:
    stacked = Stack(
        num_members=4, adapter_members=(1, 3), max_rows=9, takes_any_rows=True, device=CPU
    )
    stacked.run([0, 1, 2, 3], [1, 1, 1, 1])
    first, second, none = [1.0, 10.0, 0.0, 0.0], [0.0, 0.0, 100.0, 1000.0], [0.0] * 4
    assert scaled(stacked, 4) == [none, first, none, second]


def test_rows_of_the_first_member_have_the_scales_of_their_tokens() -> None:
    """The first token mixes logits, the second parameters."""
    stacked = stack()
    stacked.run([0, 1], [2, 1], torch.tensor([[1.0, 0.0], [-0.5, 2.0]]))
    assert scaled(stacked, 3) == [
        [1.0, 10.0, 0.0, 0.0],
        [-0.5, -5.0, 200.0, 2000.0],
        [0.0, 0.0, 100.0, 1000.0],
    ]


@pytest.mark.parametrize("scales", [None, torch.tensor([[0.0, 1.0], [-0.5, 2.0]])])
def test_rows_of_all_members_have_the_same_scales_however_they_are_set(
    scales: torch.Tensor | None,
) -> None:
    """Where all members always run, they are set in two launches."""
    found = []
    for takes_any_rows in (True, False):
        stacked = stack(takes_any_rows=takes_any_rows)
        stacked.run([0, 1, 2], [3, 3, 3])
        stacked.run([0, 1, 2], [2, 2, 2], scales)  # nothing is left of the pass before
        found.append(scaled(stacked, 6))
    assert found[0] == found[1]


def test_rows_of_any_members_have_scales_in_float32_whatever_the_models_dtype() -> None:
    """vLLM builds models with their dtype as torch's default."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        stacked = stack(takes_any_rows=False)
    finally:
        torch.set_default_dtype(torch.float32)
    slots_SK = torch.tensor([[0.0, 1.0], [-0.5, 2.0], [1.0, 0.0]])
    stacked.set_scales(torch.tensor([0, 0, 1, 2]), slots_SK, torch.tensor([2, 1]))
    assert scaled(stacked, 4) == [
        [1.0, 10.0, 0.0, 0.0],
        [-0.5, -5.0, 200.0, 2000.0],
        [0.0, 0.0, 100.0, 1000.0],
        [0.0] * 4,
    ]


def test_an_adapter_without_weight_leaves_no_trace_whatever_it_makes() -> None:
    stacked = stack()
    stacked.run([1], [1])
    low = torch.tensor([[torch.inf, torch.nan, 3.0, 4.0]], dtype=torch.float16)
    assert stacked.scaled(low).tolist() == [[0.0, 0.0, 3.0, 4.0]]
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert stacked.scaled(low.to(dtype)).dtype == dtype


def test_rows_are_split_by_member_in_the_order_of_the_pass() -> None:
    rows = torch.arange(6)[:, None]
    any_rows, alike = stack(), stack(takes_any_rows=False)
    any_rows.run([2, 0], [4, 2])
    assert [part[:, 0].tolist() for part in any_rows.split(rows)] == [[0, 1, 2, 3], [4, 5]]
    alike.run([2, 0], [3, 3])
    assert [part[:, 0].tolist() for part in alike.split(rows)] == [[0, 1, 2], [3, 4, 5]]
