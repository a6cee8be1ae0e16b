"""Kernels as torch operators: torch.compile and CUDA graphs see each as one opaque call.

An operator's signature is written once, at the torch fallback, whose annotations become the
operator's schema. Every other implementation is called with the same arguments in the same order.
"""

# torch.library has no types.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

_LIBRARY = torch.library.Library("prefmix", "DEF")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def operator(
    name: str,
    fallback: Callable[Arguments, Result],
    *,
    cuda: Callable[Arguments, Result],
    fake: Callable[..., Result],
) -> Callable[Arguments, Result]:
    """Registers `prefmix::<name>`. Derivatives are not defined.

    `torch.library.custom_op` does the same in fewer words, but its first call imports the whole
    compiler, Triton with it.

    Args:
      fallback: computes on a CPU; its annotations must be of types that torch.library.infer_schema
        knows. It has no defaults: torch leaves out arguments that are equal to them, so that
        another implementation would get fewer.
      cuda: computes on a GPU.
      fake: allocates the results only, from tensors without memory.
    """
    assert not fallback.__defaults__, f"{name} has defaults"
    _LIBRARY.define(name + torch.library.infer_schema(fallback, mutates_args=()))
    _LIBRARY.impl(name, fallback, "CPU")
    _LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"prefmix::{name}", fake, lib=_LIBRARY)
    registered: Any = getattr(torch.ops.prefmix, name).default
    return registered
