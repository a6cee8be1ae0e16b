"""Adapters' updates by one kernel: the kernel and its fallback against float64."""

from __future__ import annotations

import pytest
import torch

from prefmix.mixing.kernels.scaled_update import scaled_update
from support.kernels.update_cases import SHAPES, Update, check_update, make_update

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


def interpreted(case: Update) -> torch.Tensor:
    from prefmix.mixing.kernels.scaled_update_triton import scaled_update_triton

    return scaled_update_triton(*case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_fallback_matches_float64_truth(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    case = make_update(*shape, dtype=dtype)
    check_update(case, scaled_update(*case))


# The interpreter multiplies bfloat16 matrices as if their bits were integers.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("interpreter")
def test_kernel_matches_float64_truth(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    case = make_update(*shape, dtype=dtype)
    check_update(case, interpreted(case))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.usefixtures("interpreter")
def test_an_adapter_without_weight_leaves_no_trace(poison: float) -> None:
    case = make_update(4, 96, 3, 16, dtype=torch.float16)
    case.scales[1] = torch.tensor([0.5, 0.0, -2.0])
    healthy = interpreted(case)
    case.low[1, 16:32] = poison
    assert torch.equal(interpreted(case), healthy)


@pytest.mark.usefixtures("interpreter")
def test_no_rows_are_no_launch() -> None:
    assert interpreted(make_update(0, 64, 2, 16, dtype=torch.float32)).shape == (0, 64)
