"""Imports the kernels for Triton's interpreter, where there is no GPU to compile them for.

Triton reads TRITON_INTERPRET when it is first imported, so tests/unit/conftest.py imports this
module before any test is collected. The variable is then removed, since other processes inherit it.
"""

from __future__ import annotations

import importlib
import os
import sys

import torch

from support.kernels.triton_interpreter import look_up_types_once, patch_language_once

KERNEL_MODULES = (
    "prefmix.mixing.kernels.broken_rows_triton",
    "prefmix.mixing.kernels.logits_pass_triton",
    "prefmix.mixing.kernels.mix_lm_head_triton",
    "prefmix.mixing.kernels.mixture_statistics_triton",
    "prefmix.mixing.kernels.running_sums_triton",
    "prefmix.mixing.kernels.scaled_update_triton",
)


def _why_not() -> str | None:
    if torch.cuda.is_available():
        return "there is a GPU: tests/gpu runs the same cases, compiled"
    if "triton" in sys.modules:
        return "Triton was imported before it was told to interpret; run tests/unit by itself"
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        for module in KERNEL_MODULES:
            importlib.import_module(module)
    finally:
        del os.environ["TRITON_INTERPRET"]
    patch_language_once()
    look_up_types_once()
    return None


WHY_NOT = _why_not()
"""The reason for which kernels do not run on CPU tensors in this process; None if they do."""
