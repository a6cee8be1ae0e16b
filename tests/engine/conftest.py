"""Engines for the tests of this folder; support/engines.py says what kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engines import (
    RUNNER,
    AdaptedBase,
    EngineFactory,
    build_engine,
    shut_down,
    spec_of_folders,
)

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
if RUNNER == "v2":
    from support import triton_interpreter

    triton_interpreter.install()

from prefmix.mixing.spec import MixtureSpec


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/engine" in str(item.path):
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="module", params=["full checkpoints", "shared trunk"])
def mixture(
    request: pytest.FixtureRequest, policies: list[Path], adapted: AdaptedBase
) -> tuple[MixtureSpec, list[Path]]:
    """Both layouts: what is served, and the full checkpoints that it must equal."""
    if request.param == "shared trunk":
        return adapted.spec(), adapted.merged
    return spec_of_folders(policies), policies


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineFactory]:
    """engine(spec or folder, **options) -> vllm.LLM; a new one ends the one before."""
    alive: list[Any] = []

    def build(served: MixtureSpec | Path, **options: Any) -> Any:
        shut_down(alive)
        alive.append(build_engine(served, **options))
        return alive[-1]

    yield build
    shut_down(alive)
