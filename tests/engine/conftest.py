"""Engines for the tests of this folder, made by support/engines.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import (
    RUNNER,
    AdaptedBase,
    EngineFactory,
    end_process_groups,
    spec_of_folders,
)

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
if RUNNER == "v2":
    from support.kernels import triton_interpreter

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
    """The mixture of each layout, and the full checkpoints that it must equal."""
    if request.param == "shared trunk":
        return adapted.spec(), adapted.merged
    return spec_of_folders(policies), policies


@pytest.fixture(scope="session")
def engine() -> Iterator[EngineFactory]:
    """Engines that tests share; every test leaves them unchanged."""
    factory = EngineFactory(max_alive=6)
    yield factory
    factory.end()


@pytest.fixture
def own_engine() -> Iterator[EngineFactory]:
    """One engine at a time, for tests that change it or bring checkpoints of their own."""
    end_process_groups()
    factory = EngineFactory(max_alive=1)
    yield factory
    factory.end()
