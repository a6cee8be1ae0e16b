"""Adapters in their layers' own matrices: the layer's output with every row's own update."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from prefmix.mixing.models.stack import Stack

pytestmark = pytest.mark.usefixtures("vllm")

NUM_ROWS, NUM_IN, NUM_OUT = 5, 64, 96

LIBRARY: Any = SimpleNamespace(
    process_weights_after_loading=lambda layer: None,
    apply=lambda layer, x, bias=None: linear(x, layer.weight, bias),
)
"""Multiplies as on a GPU, where nothing is repacked."""


def inner_of(join: str) -> Any:
    """The layer's own method: of a CPU for one way to join, of a GPU for the other."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    return UnquantizedLinearMethod() if join == "join_factors" else LIBRARY


def joined_by(join: str, layer: nn.Module, inner: Any, stack: Stack) -> Any:
    module = importlib.import_module("prefmix.mixing.models.joined_adapters")
    return getattr(module, join)(layer, inner, stack)


@pytest.mark.parametrize("lie_apart", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 2, 4, 20])
@pytest.mark.parametrize("join", ["join_factors", "stack_factors"])
def test_rows_get_the_layers_output_and_their_own_update(
    join: str, rank: int, dtype: torch.dtype, lie_apart: bool
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
    inner = inner_of(join)
    layer.bias = nn.Parameter(torch.randn(NUM_OUT).to(dtype), requires_grad=False)
    joined = joined_by(join, layer, inner, stack)
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
    """On a GPU 16 bytes are read at a time, of rows that are multiples of 16 elements."""
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
    assert joined_by("stack_factors", layer, inner_of("join_factors"), stack) is not None
    shapes = {name: tuple(each.shape) for name, each in layer.named_parameters()}
    assert shapes == {"weight": (96 + 3 * 16, 64), "adapters_up": (3 * 16, 96)}


@pytest.mark.parametrize("rank", [3, 8])
def test_a_stacked_layers_adapter_is_changed_in_place(rank: int) -> None:
    """Graphs that replay a step read the same memory: the matrices stay where they are."""
    torch.manual_seed(rank)
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.randn(NUM_OUT, NUM_IN), requires_grad=False)
    weight, down = layer.weight.double(), torch.randn(2, rank, NUM_IN)
    up = torch.randn(2, rank, NUM_OUT)
    layer.adapters_a = nn.Parameter(down.clone(), requires_grad=False)
    layer.adapters_b = nn.Parameter(up.clone(), requires_grad=False)
    stack = Stack(
        num_members=2,
        adapter_members=(0, 1),
        max_rows=2,
        takes_any_rows=False,
        device=torch.device("cpu"),
    )
    stack.run([0, 1], [1, 1])
    joined = joined_by("stack_factors", layer, LIBRARY, stack)
    assert joined is not None
    places = [each.data_ptr() for each in layer.parameters()]
    x = torch.randn(2, NUM_IN)
    for change in (None, 0.0, 1.0):
        if change is not None:
            down[1], up[1] = change * torch.randn(rank, NUM_IN), change * torch.randn(rank, NUM_OUT)
            for held, factor in zip(joined.factors(layer, 1), (down[1], up[1]), strict=True):
                held.copy_(factor)
        expected = x.double() @ weight.T
        for row in range(2):
            expected[row] += x[row].double() @ down[row].double().T @ up[row].double()
        out = joined.apply(layer, x, None).double()
        assert (out - expected).norm() / expected.norm() < 1e-5
    assert [each.data_ptr() for each in layer.parameters()] == places


@pytest.mark.parametrize("join", ["join_factors", "stack_factors"])
def test_factors_that_are_larger_than_their_matrix_stay_apart(join: str) -> None:
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
    assert joined_by(join, layer, inner_of("join_factors"), stack) is None
    assert layer.weight.shape == (8, 16)
