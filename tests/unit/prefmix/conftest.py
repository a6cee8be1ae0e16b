"""A stand-in for vLLM, which the unit tests do without."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest

from prefmix.server.api.candidates.wish import NEUTRAL


class SamplingParams:
    """The part of vLLM's class that the Python interface uses."""

    def __init__(
        self,
        *,
        max_tokens: int = 16,
        extra_args: dict[str, Any] | None = None,
        n: int = 1,
        seed: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.__dict__.update({field: values[0] for field, values in NEUTRAL.items()})
        self.max_tokens = max_tokens
        self.extra_args = extra_args
        self.n, self.seed, self.temperature = n, seed, temperature

    def clone(self) -> SamplingParams:
        return copy.deepcopy(self)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[SamplingParams]:
    """`from vllm import SamplingParams` in the code under test gives the stand-in."""
    module = ModuleType("vllm")
    module.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return SamplingParams
