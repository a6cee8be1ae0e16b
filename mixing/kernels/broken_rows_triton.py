"""Finds broken rows of mixed logits in Triton, and the member that broke each, in one launch.

A program owns a row and reads it once. Only a broken row's hidden states are read, and only its
logits are written (prefmix.mixing.batch.broken_rows).
Shapes: N rows, V vocabulary, M members, D_m hidden width of member m.
"""

# Triton's language has no types.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

_BLOCK_V = 8192
_BLOCK_D = 2048
_NUM_WARPS = 8


@triton.jit
def _broken_rows_kernel(
    mixed,  # [N, V], natural-log scale
    hidden,  # per member a pointer to [N, D_m]
    hidden_rows,  # per member the stride of its rows
    weights,  # float32 [N, M]
    codes,  # int32 [N]
    mixed_row,
    weights_row,
    weights_column,
    vocab_size,
    WIDTHS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    source = mixed + row * mixed_row
    worst = tl.full([BLOCK_V], -float("inf"), tl.float32)
    whole = vocab_size // BLOCK_V * BLOCK_V
    for start in range(0, whole, BLOCK_V):  # without a mask, whose end would narrow every load
        x = tl.load(source + start + tl.arange(0, BLOCK_V)).to(tl.float32)
        worst = tl.maximum(worst, tl.where(x != x, float("inf"), x))
    v = whole + tl.arange(0, BLOCK_V)
    x = tl.load(source + v, mask=v < vocab_size, other=-float("inf")).to(tl.float32)
    worst = tl.maximum(worst, tl.where(x != x, float("inf"), x))
    largest = tl.max(worst, 0)
    code = 0
    if tl.abs(largest) == float("inf"):
        code = len(WIDTHS) + 1
        for m in tl.static_range(len(WIDTHS)):
            weight = tl.load(weights + row * weights_row + m * weights_column)
            furthest = tl.zeros([BLOCK_D], tl.float32)
            for start in range(0, WIDTHS[m], BLOCK_D):
                d = start + tl.arange(0, BLOCK_D)
                h = tl.load(hidden[m] + row * hidden_rows[m] + d, mask=d < WIDTHS[m], other=0.0)
                h = tl.abs(h.to(tl.float32))
                furthest = tl.maximum(furthest, tl.where(h != h, float("inf"), h))
            is_blamed = (weight != 0) & (tl.max(furthest, 0) == float("inf"))
            code = tl.where(is_blamed & (code > len(WIDTHS)), m + 1, code)  # the first one
        for start in range(0, vocab_size, BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)
            tl.store(source + v, tl.zeros([BLOCK_V], mixed.dtype.element_ty), mask=v < vocab_size)
    tl.store(codes + row, code)


def broken_rows_triton(
    mixed_NV: torch.Tensor, hidden: Sequence[torch.Tensor], weights_NM: torch.Tensor
) -> torch.Tensor:
    """Launches the kernel; nothing waits for the device.

    Args:
      mixed_NV: any float dtype; elements of a row next to each other. Broken rows become zeros.
      hidden: per member [N, D_m], elements of a row next to each other.
      weights_NM: float32.
    Returns: int32 [N], the codes of prefmix.mixing.batch.broken_rows.
    """
    num_rows, vocab_size = mixed_NV.shape
    codes_N = torch.empty(num_rows, dtype=torch.int32, device=mixed_NV.device)
    if num_rows:
        _broken_rows_kernel[(num_rows,)](
            mixed_NV,
            tuple(hidden),
            tuple(each.stride(0) for each in hidden),
            weights_NM,
            codes_N,
            mixed_NV.stride(0),
            *weights_NM.stride(),
            vocab_size,
            WIDTHS=tuple(each.shape[1] for each in hidden),
            BLOCK_V=_BLOCK_V,
            BLOCK_D=_BLOCK_D,
            num_warps=_NUM_WARPS,
        )
    return codes_N
