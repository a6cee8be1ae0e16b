"""Fixtures of the kernels' tests."""

from __future__ import annotations

import pytest
import torch

from support.kernels.interpreted import WHY_NOT


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    """Lets a test launch kernels on CPU tensors; skips or fails it where that is impossible."""
    if WHY_NOT:
        # The engine's tests, if collected too, have imported Triton; unit tests may not.
        others = any("unit" not in argument for argument in pytestconfig.args)
        (pytest.skip if others or torch.cuda.is_available() else pytest.fail)(WHY_NOT)
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def nan_filled_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills new memory with NaN, so that an output which is never written is found."""
    empty = torch.empty

    def nan_filled(*args: object, **kwargs: object) -> torch.Tensor:
        return empty(*args, **kwargs).fill_(torch.nan)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", nan_filled)
