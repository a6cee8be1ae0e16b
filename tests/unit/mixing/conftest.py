"""Kernels run in Triton's interpreter here, where there is no GPU to compile them for."""

from __future__ import annotations

import importlib
import os
import sys

import pytest
import torch

KERNEL_MODULES = (
    "mixing.kernels.log_linear_mix_triton",
    "mixing.kernels.mix_lm_head_triton",
    "mixing.kernels.mixture_statistics_triton",
)


def _why_not_interpreted() -> str | None:
    """Imports the kernels for the interpreter, which Triton must know when it is first imported."""
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
    return None


_WHY_NOT = _why_not_interpreted()


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    """For tests that launch kernels on CPU tensors."""
    if _WHY_NOT:
        # The engine's tests, if collected too, have imported Triton; unit tests may not.
        others = any("unit" not in argument for argument in pytestconfig.args)
        (pytest.skip if others or torch.cuda.is_available() else pytest.fail)(_WHY_NOT)
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def nan_filled_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that was never written must not pass for one that was."""
    empty = torch.empty

    def nan_filled(*args: object, **kwargs: object) -> torch.Tensor:
        return empty(*args, **kwargs).fill_(torch.nan)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", nan_filled)
