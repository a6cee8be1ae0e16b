"""Adapters in their layers' own matrices: the layer's output with every row's own update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from prefmix.mixing.models.joined_adapters import FactorsInMatrix, join_factors, stack_factors
from prefmix.mixing.models.stack import Stack

NUM_ROWS, NUM_IN, NUM_OUT = 5, 64, 96


class Library(UnquantizedLinearMethod):
    """Multiplies as on a GPU."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """A GPU repacks nothing."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return linear(x, layer.weight, bias)


@pytest.mark.parametrize("lie_apart", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 2, 4, 20])
@pytest.mark.parametrize("join", [join_factors, stack_factors])
def test_rows_get_the_layers_output_and_their_own_update(
    join: Callable[..., FactorsInMatrix | None], rank: int, dtype: torch.dtype, lie_apart: bool
) -> None:
    """Two adapters; the rows may be parts of wider ones, as layers pass them on."""
    torch.manual_seed(rank)
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.randn(NUM_OUT, NUM_IN).to(dtype), requires_grad=False)
    layer.adapters_a = nn.Parameter(torch.randn(2, rank, NUM_IN).to(dtype), requires_grad=False)
    layer.adapters_b = nn.Parameter(torch.randn(2, rank, NUM_OUT).to(dtype), requires_grad=False)
    weight, down, up = (
        each.detach().double() for each in (layer.weight, layer.adapters_a, layer.adapters_b)
    )
    stack = Stack(
        num_members=2,
        adapter_members=(0, 1),
        max_rows=NUM_ROWS,
        takes_any_rows=True,
        device=torch.device("cpu"),
    )
    scales = torch.tensor([[1.0, 0.0], [0.5, 0.5], [2.0, -1.5], [0.0, 0.0]])
    stack.run([0, 1], [4, 1], scales)
    inner = UnquantizedLinearMethod() if join is join_factors else Library()
    layer.bias = nn.Parameter(torch.randn(NUM_OUT).to(dtype), requires_grad=False)
    joined = join(layer, inner, stack)
    assert joined is not None
    inner.process_weights_after_loading(layer)
    wide = torch.randn(NUM_ROWS, 2 * NUM_IN).to(dtype)
    rows = wide[:, NUM_IN:] if lie_apart else wide[:, NUM_IN:].contiguous()
    bias = layer.bias
    without = joined.apply(layer, rows, None).double()
    out = joined.apply(layer, rows, bias).double()
    x = rows.double()
    assert (out - without - bias.double()).norm() / out.norm() < 1e-2
    expected = x @ weight.T + bias.double()
    for row, own in enumerate([*scales.tolist(), [0.0, 1.0]]):
        for adapter, scale in enumerate(own):
            expected[row] += scale * (x[row] @ down[adapter].T) @ up[adapter]
    error = (out - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_a_stacked_layer_multiplies_two_matrices_of_whole_pieces_of_memory() -> None:
    """On a GPU a row of 16 bytes is read at a time: ranks are filled up to 8."""
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.zeros(96, 64), requires_grad=False)
    layer.adapters_a = nn.Parameter(torch.zeros(3, 5, 64), requires_grad=False)
    layer.adapters_b = nn.Parameter(torch.zeros(3, 5, 96), requires_grad=False)
    stack = Stack(
        num_members=3,
        adapter_members=(0, 1, 2),
        max_rows=1,
        takes_any_rows=False,
        device=torch.device("cpu"),
    )
    assert stack_factors(layer, UnquantizedLinearMethod(), stack) is not None
    shapes = {name: tuple(each.shape) for name, each in layer.named_parameters()}
    assert shapes == {"weight": (96 + 3 * 8, 64), "adapters_up": (3 * 8, 96)}


@pytest.mark.parametrize("join", [join_factors, stack_factors])
def test_factors_that_are_larger_than_their_matrix_stay_apart(
    join: Callable[..., FactorsInMatrix | None],
) -> None:
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.zeros(8, 16), requires_grad=False)
    layer.adapters_a = nn.Parameter(torch.zeros(3, 3, 16), requires_grad=False)
    layer.adapters_b = nn.Parameter(torch.zeros(3, 3, 8), requires_grad=False)
    stack = Stack(
        num_members=3,
        adapter_members=(0, 1, 2),
        max_rows=1,
        takes_any_rows=True,
        device=torch.device("cpu"),
    )
    assert join(layer, UnquantizedLinearMethod(), stack) is None
    assert layer.weight.shape == (8, 16)
