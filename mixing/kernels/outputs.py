"""Memory for the tensors that kernels return, for all their implementations."""

from __future__ import annotations

import torch

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

_ROW_ELEMENTS = 16
"""Rows begin at multiples of so many elements, which Triton knows to be aligned."""


def empty_outputs(weights: torch.Tensor, num_present: int) -> Outputs:
    """Allocates the six tensors of `mixture_statistics`; columns that nothing will write hold NaN
    and False."""
    num_rows, num_members = weights.shape
    shapes = [(num_rows,)] * 3 + [(num_rows, num_members)] * 2
    a, b, c, d, e = (
        torch.empty(shape, dtype=torch.float32, device=weights.device) for shape in shapes
    )
    if num_present < num_members:
        d.fill_(torch.nan)
        e.fill_(torch.nan)
    return a, b, c, d, e, torch.zeros_like(d, dtype=torch.bool)


def aligned_rows(
    num_rows: int, width: int, *, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Memory for [N, width] whose rows begin where a GPU writes 128 bits at a time."""
    stride = -(-width // _ROW_ELEMENTS) * _ROW_ELEMENTS
    memory = torch.empty((num_rows, stride), dtype=dtype, device=device)
    return memory[:, :width] if stride > width else memory
