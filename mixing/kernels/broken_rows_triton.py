"""Finds broken rows of mixed logits in Triton, and the member that broke each, in one launch.

A program owns a row. It reads the row's logits once, or in their stead the largest of each part,
which the pass that mixed them has kept (logits_pass_triton.py). Only a broken row's hidden states
are read, and only its logits are written (prefmix.mixing.batch.broken_rows).
Shapes: N rows, V vocabulary, Q numbers for the parts of a row, M members, D_m hidden width of
member m.
"""

# Triton's language has no types.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

_BLOCK_V = 16384
"""Much at a time: a row that is alone has nothing to do while it waits for memory."""
_BLOCK_D = 2048
_NUM_WARPS = 16
_NUM_WARPS_OF_PARTS = 4


@triton.jit
def _broken_rows_kernel(
    source,  # [N, W], the mixed logits, or the largest of each part
    mixed,  # [N, V], natural-log scale
    hidden,  # per member a pointer to [N, D_m]
    hidden_rows,  # per member the stride of its rows
    weights,  # float32 [N, M]
    codes,  # int32 [N]
    source_row,
    mixed_row,
    weights_row,
    weights_column,
    width,  # W
    vocab_size,
    WIDTHS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    source += row * source_row
    worst = tl.full([BLOCK_W], -float("inf"), tl.float32)
    whole = width // BLOCK_W * BLOCK_W
    for start in range(0, whole, BLOCK_W):  # without a mask, whose end would narrow every load
        x = tl.load(source + start + tl.arange(0, BLOCK_W)).to(tl.float32)
        worst = tl.maximum(worst, tl.where(x != x, float("inf"), x))
    w = whole + tl.arange(0, BLOCK_W)
    x = tl.load(source + w, mask=w < width, other=-float("inf")).to(tl.float32)
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
        for start in range(0, vocab_size, BLOCK_W):
            v = start + tl.arange(0, BLOCK_W)
            zeros = tl.zeros([BLOCK_W], mixed.dtype.element_ty)
            tl.store(mixed + row * mixed_row + v, zeros, mask=v < vocab_size)
    tl.store(codes + row, code)


def broken_rows_triton(
    mixed_NV: torch.Tensor,
    hidden: Sequence[torch.Tensor],
    weights_NM: torch.Tensor,
    tops_NQ: torch.Tensor | None = None,
) -> torch.Tensor:
    """Launches the kernel; nothing waits for the device.

    Args:
      mixed_NV: any float dtype; elements of a row next to each other. Broken rows become zeros.
      hidden: per member [N, D_m], elements of a row next to each other.
      weights_NM: float32.
      tops_NQ: of the pass that mixed the logits; None reads the logits themselves.
    Returns: int32 [N], the codes of prefmix.mixing.batch.broken_rows.
    """
    num_rows, vocab_size = mixed_NV.shape
    codes_N = torch.empty(num_rows, dtype=torch.int32, device=mixed_NV.device)
    source = mixed_NV if tops_NQ is None else tops_NQ
    if num_rows:
        _broken_rows_kernel[(num_rows,)](
            source,
            mixed_NV,
            tuple(hidden),
            tuple(each.stride(0) for each in hidden),
            weights_NM,
            codes_N,
            source.stride(0),
            mixed_NV.stride(0),
            *weights_NM.stride(),
            source.shape[1],
            vocab_size,
            WIDTHS=tuple(each.shape[1] for each in hidden),
            BLOCK_W=_BLOCK_V if tops_NQ is None else tops_NQ.shape[1],
            BLOCK_D=_BLOCK_D,
            num_warps=_NUM_WARPS if tops_NQ is None else _NUM_WARPS_OF_PARTS,
        )
    return codes_N
