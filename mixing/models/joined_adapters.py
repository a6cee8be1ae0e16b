"""LoRA updates of all members as two products per layer, for a CPU.

Every lora_A becomes part of the layer's own matrix, and all lora_B become one more matrix. Batches
of small products would cost their calls on a CPU. One product with [W; A_1 ... A_K] gives each row
the layer's output and the low-rank inputs of all adapters. Those of other members' adapters are set
to zero, and one product with [B_1 ... B_K] gives the row's own update.

Shapes: R rank, K adapters, I inputs, O outputs.
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
        self, inner: UnquantizedLinearMethod, up: nn.Module, stack: Stack, *, rank: int
    ) -> None:
        """Args:
        inner: multiplies by a module's `weight`, which it has repacked.
        up: holds all lora_B as one weight [out, K * R].
        rank: R.
        """
        self._inner = inner
        self._up = up
        self._stack = stack
        self._rank = rank

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Like AdapterLinearMethod.apply."""
        num_low = self._stack.num_adapters * self._rank
        joined: torch.Tensor = self._inner.apply(layer, x, None)
        out, low = joined.split([joined.shape[-1] - num_low, num_low], dim=-1)  # type: ignore[no-untyped-call]
        own = self._stack.owners(x.shape[0])[:, :, None]
        places = (x.shape[0], self._stack.num_adapters, self._rank)
        low = torch.where(own, low.reshape(places), 0.0).reshape(low.shape)
        out = out + self._inner.apply(self._up, low, None)
        return out if bias is None else out + bias.to(out.dtype)


def join_factors(layer: Any, inner: UnquantizedLinearMethod, stack: Stack) -> JoinedFactors | None:
    """Moves a loaded layer's adapters into its own matrix; None if they would be larger than it."""
    a_KIR, b_KRO = layer.adapters_a.data, layer.adapters_b.data
    num_low = a_KIR.shape[0] * a_KIR.shape[2]
    if num_low > min(layer.weight.shape):
        return None
    down = a_KIR.transpose(1, 2).reshape(num_low, -1)
    layer.weight = nn.Parameter(torch.cat([layer.weight.data, down]), requires_grad=False)
    up = nn.Module()
    up.weight = nn.Parameter(b_KRO.reshape(num_low, -1).T.contiguous(), requires_grad=False)
    inner.process_weights_after_loading(up)
    for name in ("adapters_a", "adapters_b"):
        delattr(layer, name)
    return JoinedFactors(inner, up, stack, rank=a_KIR.shape[2])
