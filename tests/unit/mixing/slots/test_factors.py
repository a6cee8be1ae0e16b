"""Slots' factors are added to the rows that have a scale of them, and to no pass without one."""

from __future__ import annotations

import pytest
import torch

from prefmix.mixing.models.stack import Stack
from prefmix.mixing.slots.factors import add_slot_factors

pytestmark = pytest.mark.usefixtures("vllm")

NUM_ROWS, NUM_SLOTS, RANK, NUM_IN, NUM_OUT = 4, 3, 2, 16, 24


def stack(num_rows: int = NUM_ROWS) -> Stack:
    """One adapter of the start, the base itself, and three slots, the last without rows."""
    return Stack(
        num_members=4,
        adapter_members=(0, 2, 3, 4),
        max_rows=num_rows,
        takes_any_rows=True,
        device=torch.device("cpu"),
        num_slots=NUM_SLOTS,
    )


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def expected(
    out: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    low = torch.einsum("ni,sri->nsr", x.double(), down.double()) * scales.double()[:, :, None]
    return out.double() + torch.einsum("nsr,sro->no", low, up.double())


def test_a_pass_knows_which_slots_its_rows_have() -> None:
    stacked = stack()
    stacked.run([0, 1], [2, 2], torch.tensor([[1.0, 0, 0, 0], [0.5, 0, 0, 0]]))
    assert stacked.slots_used.tolist() == [0, 0, 0, 0]
    stacked.run([0, 3], [2, 2], torch.tensor([[0.5, 0, 0, 0.5], [1.0, 0, 0, 0]]))
    assert stacked.slots_used.tolist() == [0, 4, 1, 3]
    assert stacked.slot_scales(4).tolist() == [[0, 0, 0.5], [0, 0, 0], [0, 1, 0], [0, 1, 0]]
    stacked.run([1, 2, 0], [1, 2, 1])
    assert stacked.slots_used.tolist() == [1, 3, 0, 1]
    stacked.run([0], [4])
    assert stacked.slots_used.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("is_compiled", "copies"), [(False, 1), (False, 9), (True, 1)])
def test_rows_get_their_slots_updates_in_whatever_pass(
    dtype: torch.dtype, is_compiled: bool, copies: int
) -> None:
    """Compiled code is traced once, and follows the passes that come after."""
    down, up = (
        drawn(NUM_SLOTS, RANK, NUM_IN, dtype=dtype),
        drawn(NUM_SLOTS, RANK, NUM_OUT, dtype=dtype),
    )
    num_rows = copies * NUM_ROWS
    x, base = drawn(num_rows, NUM_IN, dtype=dtype), drawn(num_rows, NUM_OUT, dtype=dtype)
    stacked = stack(num_rows)

    def layer(x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        out = base * 1.0
        add_slot_factors(out, x, down, up, stacked.slot_scales(len(x)), stacked.slots_used)
        return out

    run = torch.compile(layer, backend="aot_eager", fullgraph=True) if is_compiled else layer
    none = torch.tensor([[1.0, 0, 0, 0]] * 2).repeat(copies, 1)
    some = torch.tensor([[0.5, 0, 0, 0.5], [0.2, -0.3, 0, 1.1]]).repeat(copies, 1)
    passes = [([0, 1], none), ([0, 3], some), ([0, 1], none), ([0, 2], none), ([0, 1], some)]
    for members, scales in passes:
        stacked.run(members, [num_rows // 2] * 2, scales)
        truth = expected(base, x, down, up, stacked.slot_scales(num_rows))
        error = (run(x, base).double() - truth).norm() / truth.norm()
        assert error < (1e-6 if dtype == torch.float32 else 1e-2)


def test_passes_without_a_slot_multiply_nothing() -> None:
    """Not even numbers that would spoil every row."""
    out = drawn(NUM_ROWS, NUM_OUT)
    down = torch.full((NUM_SLOTS, RANK, NUM_IN), torch.nan)
    up = torch.full((NUM_SLOTS, RANK, NUM_OUT), torch.nan)
    stacked = stack()
    stacked.run([0], [NUM_ROWS])
    before = out.clone()
    scales = stacked.slot_scales(NUM_ROWS)
    add_slot_factors(out, drawn(NUM_ROWS, NUM_IN), down, up, scales, stacked.slots_used)
    assert torch.equal(out, before)
