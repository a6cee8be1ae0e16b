"""Every lora_B as a part of its layer's own matrix, for a CPU.

A product of its own would cost a call and a pass over the layer's outputs more. One product with
[A_1; ...; A_K] gives each row the low-rank inputs of all adapters. These are scaled as the row has
it (prefmix.mixing.models.stack), and one product of the row with them behind it, and of
[W B_1 ... B_K], gives the layer's output with the row's own update.

Shapes: R ranks, K adapters, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from prefmix.mixing.models.stack import Stack


class JoinedFactors:
    """A linear layer whose matrix [O, I + K * R] also holds every adapter's lora_B."""

    def __init__(self, inner: UnquantizedLinearMethod, down: nn.Module, stack: Stack) -> None:
        """Args:
        inner: multiplies by a module's `weight`, which it has repacked.
        down: holds all lora_A as one weight [K * R, I].
        """
        self._inner = inner
        self._down = down
        self._stack = stack

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Like AdapterLinearMethod.apply."""
        # vLLM 0.32 multiplies by matrices of few rows wrongly where an input's rows lie apart.
        x = x.contiguous()
        low = self._inner.apply(self._down, x, None)
        joined = torch.cat([x, self._stack.scaled(low)], dim=-1)
        out: torch.Tensor = self._inner.apply(layer, joined, None)
        return out if bias is None else out + bias.to(out.dtype)


def join_factors(layer: Any, inner: UnquantizedLinearMethod, stack: Stack) -> JoinedFactors | None:
    """Moves a loaded layer's adapters into its own matrix; None if they would be larger than it."""
    down_RI, up_RO = (each.data.flatten(0, 1) for each in (layer.adapters_a, layer.adapters_b))
    if len(down_RI) > min(layer.weight.shape):
        return None
    layer.weight = nn.Parameter(torch.cat([layer.weight.data, up_RO.T], 1), requires_grad=False)
    down = nn.Module()
    down.weight = nn.Parameter(down_RI.contiguous(), requires_grad=False)
    inner.process_weights_after_loading(down)
    for name in ("adapters_a", "adapters_b"):
        delattr(layer, name)
    return JoinedFactors(inner, down, stack)
