"""Inputs of `scaled_update` as a layer of a shared trunk has them, and their check."""

from __future__ import annotations

from typing import NamedTuple

import torch

SHAPES = [(1, 64, 3, 16), (5, 200, 2, 48), (70, 130, 1, 16)]
"""Few rows and many, outputs and ranks that fill no tile: rows, outputs, adapters, ranks."""


class Update(NamedTuple):
    """Arguments of `scaled_update`."""

    out: torch.Tensor
    low: torch.Tensor
    scales: torch.Tensor
    up: torch.Tensor


def make_update(
    rows: int,
    outputs: int,
    adapters: int,
    ranks: int,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    seed: int = 0,
) -> Update:
    """Outputs and low-rank inputs lie side by side, as one product has made them; scales are 0, 1
    and others."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(rows, outputs + adapters * ranks, generator=generator).to(device, dtype)
    scales = torch.randn(rows, adapters, generator=generator)
    scales[::2] = torch.nn.functional.one_hot(torch.arange(rows)[::2] % adapters, adapters).float()
    up = torch.randn(adapters * ranks, outputs, generator=generator).to(device, dtype)
    out, low = both.tensor_split([outputs], dim=1)
    return Update(out, low, scales.to(device), up)


def check_update(case: Update, found: torch.Tensor) -> None:
    """Asserts that a result is as near to float64 as its dtype allows."""
    rows, adapters = case.scales.shape
    low = (case.low.double().reshape(rows, adapters, -1) * case.scales.double()[:, :, None]).to(
        case.low.dtype
    )
    update = low.double().reshape(case.low.shape) @ case.up.double()
    truth = case.out.double() + update
    assert (found.shape, found.dtype) == (case.out.shape, case.out.dtype)
    assert found.is_contiguous()
    precision = torch.finfo(found.dtype).eps
    size = (
        case.out.double().abs()
        + low.double().reshape(case.low.shape).abs() @ case.up.double().abs()
    )
    assert ((found.double() - truth).abs() <= 2 * precision * size).all()
