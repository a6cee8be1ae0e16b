"""Memory for the tensors that `mixture_statistics` returns, for all its implementations."""

from __future__ import annotations

import torch

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def empty_outputs(weights: torch.Tensor, num_present: int) -> Outputs:
    """Allocates the six tensors; columns that nothing will write hold NaN and False."""
    num_rows, num_members = weights.shape
    shapes = [(num_rows,)] * 3 + [(num_rows, num_members)] * 2
    a, b, c, d, e = (
        torch.empty(shape, dtype=torch.float32, device=weights.device) for shape in shapes
    )
    if num_present < num_members:
        d.fill_(torch.nan)
        e.fill_(torch.nan)
    return a, b, c, d, e, torch.zeros_like(d, dtype=torch.bool)
