"""Kernels as torch operators: what torch.compile and CUDA graphs see of them is one opaque call."""

# torch.library has no types.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("prefmix", "DEF")


def operator(
    name: str,
    schema: str,
    *,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any],
    fake: Callable[..., Any],
) -> Callable[..., Any]:
    """Registers `prefmix::<name>`. Derivatives are not defined.

    `torch.library.custom_op` does the same in fewer words, but its first call imports the whole
    compiler, Triton with it.

    Args:
      schema: arguments and results in torch's notation, of all three functions.
      cpu, cuda: what computes.
      fake: what allocates the results only, from tensors without memory.
    """
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, cpu, "CPU")
    _LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"prefmix::{name}", fake, lib=_LIBRARY)
    registered: Callable[..., Any] = getattr(torch.ops.prefmix, name).default
    return registered
