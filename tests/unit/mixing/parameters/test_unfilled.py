"""Every part of a parameter that no tensor fills is found, and no value of a checkpoint is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prefmix.mixing.parameters import unfilled

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
)
SIZES = [8, 16, 8]


class Fused(nn.Module):
    """A layer of three parts, beside parameters that are filled when they are made."""

    def __init__(self, dtype: torch.dtype, *, is_transposed: bool = False) -> None:
        super().__init__()
        shape = (24, sum(SIZES)) if is_transposed else (sum(SIZES), 24)
        self.qkv_proj = nn.Module()
        self.qkv_proj.weight = nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
        self.qkv_proj.output_partition_sizes = SIZES
        self.norm = nn.Parameter(torch.ones(16))
        self.later = nn.Parameter(torch.empty(16).fill_(2.0))
        self.scratch = torch.empty(8)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Any:
    dtype, is_transposed = request.param
    return unfilled.built(lambda: Fused(dtype, is_transposed=is_transposed))


def random_values(like: torch.Tensor) -> torch.Tensor:
    if like.is_floating_point():
        return torch.randn(like.shape).to(like.dtype)
    return torch.randint(-128, 127, like.shape).to(like.dtype)


@pytest.mark.parametrize(
    "model",
    [(dtype, False) for dtype in DTYPES] + [(torch.int32, True), (torch.bfloat16, True)],
    indirect=True,
    ids=str,
)
def test_only_the_parts_that_nothing_fills_are_named(model: Any) -> None:
    assert model.reserved_parameters == ["qkv_proj.weight"]
    assert model.norm.eq(1).all()
    assert model.later.eq(2).all()
    assert model.scratch[0] == 0, "no mark stays in memory that is no parameter"
    weight = model.qkv_proj.weight.data
    dimension = weight.shape.index(sum(SIZES))
    parts = ["q_proj.weight", "k_proj.weight", "v_proj.weight"]
    for absent in range(3):
        unfilled.mark(model)
        for index, rows in enumerate(weight.split(SIZES, dim=dimension)):
            if index != absent:
                rows.copy_(random_values(rows))
        assert unfilled.lacking(model, []) == [parts[absent]]
    unfilled.mark(model)
    assert unfilled.lacking(model, []) == parts
    for _ in range(50):
        unfilled.mark(model)
        weight.copy_(random_values(weight))
        assert unfilled.lacking(model, []) == []


@pytest.mark.parametrize("model", [(torch.float32, False)], indirect=True, ids=str)
def test_nan_of_a_checkpoint_is_a_value(model: Any) -> None:
    unfilled.mark(model)
    model.qkv_proj.weight.data.fill_(torch.nan)
    assert unfilled.lacking(model, []) == []


@pytest.mark.parametrize("model", [(torch.float32, False)], indirect=True, ids=str)
def test_a_scale_that_one_part_lacks_is_named(model: Any) -> None:
    unfilled.mark(model)
    model.qkv_proj.weight.data.zero_()
    names = [f"layers.0.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "input_scale")]
    own = ["layers.0.k_proj.k_scale", "layers.0.v_proj.v_scale", "layers.0.k_proj.bias"]
    assert unfilled.lacking(model, [*names, *own]) == []
    names.remove("layers.0.k_proj.input_scale")
    assert unfilled.lacking(model, names) == ["layers.0.k_proj.input_scale"]
