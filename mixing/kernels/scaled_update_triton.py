"""The low-rank updates of a linear layer's outputs in Triton: one launch, outputs read once.

A program owns a tile of rows and outputs. It walks the adapters' ranks, scales what it reads of the
low-rank inputs, and multiplies.
Shapes: N rows, O outputs, A adapters, R ranks of each.
"""

# Triton's language has no types.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

_FEW = 16
"""The most rows that one tile of the smallest size holds."""
_FEW_ROWS = {"BLOCK_N": 16, "BLOCK_O": 64, "BLOCK_R": 64, "num_warps": 4, "num_stages": 3}
_MANY_ROWS = {"BLOCK_N": 64, "BLOCK_O": 128, "BLOCK_R": 32, "num_warps": 4, "num_stages": 3}
CONFIGS = (_FEW_ROWS, _MANY_ROWS)


@triton.jit(do_not_specialize=["num_rows"])
def _scaled_update_kernel(
    out,  # [N, O], rows of out_row elements
    low,  # [N, A * R], rows of low_row elements
    scales,  # float32 [N, A]
    up,  # [A * R, O], contiguous
    result,  # [N, O], contiguous
    num_rows,
    num_outputs,
    num_ranks,
    ranks,
    out_row,
    low_row,
    scales_row,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    # Programs of the same outputs follow each other: they read the same factors.
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    o = (tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)[None, :]
    is_row, is_output = n < num_rows, o < num_outputs
    total = tl.zeros([BLOCK_N, BLOCK_O], tl.float32)
    for first in range(0, num_ranks, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        is_rank = r < num_ranks
        mask = is_row & is_rank[None, :]
        z = tl.load(low + n * low_row + r[None, :], mask=mask, other=0.0)
        s = tl.load(scales + n * scales_row + (r // ranks)[None, :], mask=mask, other=0.0)
        z = (tl.where(s == 0.0, 0.0, z.to(tl.float32)) * s).to(low.dtype.element_ty)
        b = tl.load(
            up + r.to(tl.int64)[:, None] * num_outputs + o,
            mask=is_rank[:, None] & is_output,
            other=0.0,
        )
        total = tl.dot(z, b, total, input_precision=PRECISION)
    mask = is_row & is_output
    total += tl.load(out + n * out_row + o, mask=mask, other=0.0).to(tl.float32)
    tl.store(result + n * num_outputs + o, total.to(result.dtype.element_ty), mask=mask)


def scaled_update_triton(
    out: torch.Tensor, low: torch.Tensor, scales: torch.Tensor, up: torch.Tensor
) -> torch.Tensor:
    """Launches the kernel. Takes the arguments of `scaled_update_torch`.

    Tile sizes go by the number of rows alone: nothing is measured where a graph is captured.
    """
    num_rows, num_outputs = out.shape
    num_ranks, num_adapters = low.shape[1], scales.shape[1]
    result = torch.empty_like(out, memory_format=torch.contiguous_format)
    config = _FEW_ROWS if num_rows <= _FEW else _MANY_ROWS
    grid = (
        triton.cdiv(num_rows, config["BLOCK_N"]),
        triton.cdiv(num_outputs, config["BLOCK_O"]),
    )
    if not num_rows:
        return result
    _scaled_update_kernel[grid](
        out,
        low,
        scales,
        up,
        result,
        num_rows,
        num_outputs,
        num_ranks,
        num_ranks // num_adapters,
        out.stride(0),
        low.stride(0),
        scales.stride(0),
        PRECISION="ieee" if out.dtype == torch.float32 else "tf32",
        **config,
    )
    return result
