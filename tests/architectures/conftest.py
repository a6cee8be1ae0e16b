"""Marks the tests of this folder, which start engines, and sets vLLM up for them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from support.engines import EngineFactory, end_process_groups

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/architectures" in str(item.path):
            item.add_marker(pytest.mark.engine)


@pytest.fixture
def own_engine() -> Iterator[EngineFactory]:
    """One engine at a time."""
    end_process_groups()
    factory = EngineFactory(max_alive=1)
    yield factory
    factory.end()
