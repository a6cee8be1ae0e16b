"""The low-rank updates of a linear layer's outputs: the public function and its torch fallback.

The Triton kernel is in scaled_update_triton.py.

Shapes: N rows, O outputs, A adapters, R ranks of each.
"""

from __future__ import annotations

from typing import Any

import torch

from prefmix.mixing.kernels.operators import operator


def scaled_update(
    out: torch.Tensor, low: torch.Tensor, scales: torch.Tensor, up: torch.Tensor
) -> torch.Tensor:
    """Adds adapters' updates to the outputs of a linear layer, each by the row's scale.

    result[n] = out[n] + sum_a scales[n, a] * low[n, a] @ up[a], accumulated in float32. An adapter
    with scale 0 leaves no trace in a row, whatever `low` holds there.

    Where libraries need three launches (the scaling, a copy of `out`, a product that adds to the
    copy), the Triton kernel is one, and reads and writes the outputs once. CUDA tensors go to it,
    others to the torch fallback. Both are the operator `prefmix::scaled_update`.

    Args:
      out: [N, O], any rows' stride.
      low: [N, A * R] of the same dtype, any rows' stride.
      scales: float32 [N, A].
      up: [A * R, O], contiguous.
    Returns: [N, O], contiguous.
    """
    result: torch.Tensor = _scaled_update(out, low, scales, up)
    return result


def scaled_update_torch(
    out: torch.Tensor, low: torch.Tensor, scales: torch.Tensor, up: torch.Tensor
) -> torch.Tensor:
    """The same by torch's own operations."""
    return torch.addmm(out, scaled(low, scales), up)


def scaled(low: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Scales low-rank inputs [N, A * R] by each row's scales [N, A]; keeps their dtype."""
    num_rows, num_adapters = scales.shape
    factors = scales[:, :, None]
    found = low.reshape(num_rows, num_adapters, -1) * factors
    if low.dtype == torch.float16:
        # Finite factors may overflow here, and another member's adapter must leave no trace in a
        # row, whatever it makes: 0 * inf is NaN.
        found = torch.where(factors == 0, 0.0, found)
    return found.to(low.dtype).reshape(low.shape)


def _on_gpu(*arguments: Any) -> torch.Tensor:
    from prefmix.mixing.kernels.scaled_update_triton import scaled_update_triton

    return scaled_update_triton(*arguments)


def _empty(
    out: torch.Tensor, low: torch.Tensor, scales: torch.Tensor, up: torch.Tensor
) -> torch.Tensor:
    return out.new_empty(out.shape)


_scaled_update = operator("scaled_update", scaled_update_torch, cuda=_on_gpu, fake=_empty)
