"""Adapters' factors as a part of their layer's own matrix.

A product of its own for each factor would cost calls and passes over rows. Low-rank inputs are
scaled as each row has it (prefmix.mixing.models.stack), so that one product serves the rows of all
members. Which factors join the matrix depends on the device:

    CPU:  W x + B s A x = [W B_1 ... B_K] [x; s A x]      after one product with [A_1; ...; A_K]
    GPU:  [W; A_1; ...; A_K] x = [W x; A x]               before one kernel with [B_1 ... B_K]

On a CPU the second product adds nothing to a pass over the outputs. On a GPU a product of few
columns leaves most of the device idle, and [A_1; ...; A_K] x is the one with few.

Shapes: R ranks, K adapters, I inputs, O outputs, N rows.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import pad
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from prefmix.mixing.models.stack import Stack


class FactorsInMatrix(Protocol):
    """A linear layer whose matrix also holds adapters' factors."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Like AdapterLinearMethod.apply. Args: x: [N, I]. Returns: [N, O]."""

    def factors(self, layer: Any, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One adapter's places in the matrices, [R, I] and [R, O]: what is written there counts
        from the next pass on, also in graphs that replay one."""


class JoinedFactors:
    """For a CPU: a linear layer whose matrix [O, I + K * R] also holds every adapter's lora_B."""

    def __init__(
        self, inner: UnquantizedLinearMethod, down: nn.Module, stack: Stack, num_adapters: int
    ) -> None:
        """Args:
        inner: multiplies by a module's `weight`, which it has repacked.
        down: holds all lora_A as one weight [K * R, I].
        num_adapters: K, the first ones of the stack.
        """
        self._inner = inner
        self._down = down
        self._stack = stack
        self._num_adapters = num_adapters

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See FactorsInMatrix."""
        # vLLM 0.32 multiplies by matrices of few rows wrongly where an input's rows lie apart.
        x = x.contiguous()
        low = self._inner.apply(self._down, x, None)
        joined = torch.cat([x, self._stack.scaled(low, self._num_adapters)], dim=-1)
        out: torch.Tensor = self._inner.apply(layer, joined, None)
        return out if bias is None else out + bias.to(out.dtype)

    def factors(self, layer: Any, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Asserts: a repacked matrix never changes, so no slot joins one on a CPU."""
        raise AssertionError("factors in a repacked matrix have no places")


def join_factors(layer: Any, inner: UnquantizedLinearMethod, stack: Stack) -> JoinedFactors | None:
    """Moves a loaded layer's adapters into its own matrix; None if they would be larger than it."""
    num_adapters = len(layer.adapters_a)
    down_RI, up_RO = (each.data.flatten(0, 1) for each in (layer.adapters_a, layer.adapters_b))
    if len(down_RI) > min(layer.weight.shape):
        return None
    layer.weight = nn.Parameter(torch.cat([layer.weight.data, up_RO.T], 1), requires_grad=False)
    down = nn.Module()
    down.weight = nn.Parameter(down_RI.contiguous(), requires_grad=False)
    inner.process_weights_after_loading(down)
    for name in ("adapters_a", "adapters_b"):
        delattr(layer, name)
    return JoinedFactors(inner, down, stack, num_adapters)


_RANKS = 16
"""Ranks are filled up to multiples of so many, of zeros: Triton reads 16 bytes at a time of rows of
which it knows that they start at multiples of 16 elements."""


class StackedFactors:
    """For a GPU: a linear layer whose matrix [O + K * R, I] also holds every adapter's lora_A."""

    def __init__(self, inner: UnquantizedLinearMethod, layer: Any, stack: Stack) -> None:
        """Args:
        inner: multiplies by a module's `weight`.
        layer: has its parameters loaded; its weight grows by every lora_A.
        """
        self._inner = inner
        self._stack = stack
        self._num_outputs = len(layer.weight)
        self._num_adapters, self._num_ranks, _ = layer.adapters_a.shape
        more = -self._num_ranks % _RANKS
        down_RI, up_RO = (
            pad(each.data, (0, 0, 0, more)).flatten(0, 1)
            for each in (layer.adapters_a, layer.adapters_b)
        )
        layer.weight = nn.Parameter(torch.cat([layer.weight.data, down_RI]), requires_grad=False)
        layer.adapters_up = nn.Parameter(up_RO, requires_grad=False)
        bias = getattr(layer, "bias", None)
        wide = None if bias is None else pad(bias.data, (0, len(down_RI)))
        layer.register_buffer("adapters_bias", wide, persistent=False)
        for name in ("adapters_a", "adapters_b"):
            delattr(layer, name)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See FactorsInMatrix."""
        # Layers give their own bias or none: it is added before the product is rounded.
        both = self._inner.apply(layer, x, None if bias is None else layer.adapters_bias)
        out, low = both.tensor_split([self._num_outputs], dim=-1)
        return self._stack.updated(out, low, layer.adapters_up, self._num_adapters)

    def factors(self, layer: Any, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See FactorsInMatrix."""
        down_RI, up_RO = layer.weight.data[self._num_outputs :], layer.adapters_up.data
        down, up = (
            each.view(self._num_adapters, -1, each.shape[1])[index, : self._num_ranks]
            for each in (down_RI, up_RO)
        )
        return down, up


def stack_factors(
    layer: Any, inner: UnquantizedLinearMethod, stack: Stack
) -> StackedFactors | None:
    """Moves a loaded layer's adapters into its own matrix; None if they would be larger than it."""
    if layer.adapters_a[:, :, 0].numel() > min(layer.weight.shape):
        return None
    return StackedFactors(inner, layer, stack)
