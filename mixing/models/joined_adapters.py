"""Every lora_A as a part of its layer's own matrix, for a CPU.

A product of its own would cost a call more. One product with [W; A_1 ... A_K] gives each row the
layer's output and the low-rank inputs of all adapters. These are scaled as the row has it
(prefmix.mixing.models.stack), and one product with [B_1 ... B_K] gives the row's own update.

Shapes: R largest rank, K adapters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from prefmix.mixing.models.stack import Stack


class JoinedFactors:
    """A linear layer whose matrix also holds every adapter's lora_A."""

    def __init__(
        self, inner: UnquantizedLinearMethod, up: nn.Module, stack: Stack, *, num_low: int
    ) -> None:
        """Args:
        inner: multiplies by a module's `weight`, which it has repacked.
        up: holds all lora_B as one weight [out, K * R].
        num_low: K * R.
        """
        self._inner = inner
        self._up = up
        self._stack = stack
        self._num_low = num_low

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Like AdapterLinearMethod.apply."""
        joined: torch.Tensor = self._inner.apply(layer, x, None)
        widths = [joined.shape[-1] - self._num_low, self._num_low]
        out, low = joined.split(widths, dim=-1)  # type: ignore[no-untyped-call]
        out = out + self._inner.apply(self._up, self._stack.scaled(low), None)
        return out if bias is None else out + bias.to(out.dtype)


def join_factors(layer: Any, inner: UnquantizedLinearMethod, stack: Stack) -> JoinedFactors | None:
    """Moves a loaded layer's adapters into its own matrix; None if they would be larger than it."""
    down, up_T = (each.data.flatten(0, 1) for each in (layer.adapters_a, layer.adapters_b))
    num_low = len(down)
    if num_low > min(layer.weight.shape):
        return None
    layer.weight = nn.Parameter(torch.cat([layer.weight.data, down]), requires_grad=False)
    up = nn.Module()
    up.weight = nn.Parameter(up_T.T.contiguous(), requires_grad=False)
    inner.process_weights_after_loading(up)
    for name in ("adapters_a", "adapters_b"):
        delattr(layer, name)
    return JoinedFactors(inner, up, stack, num_low=num_low)
