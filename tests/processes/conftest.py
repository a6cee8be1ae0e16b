"""Tests with processes of their own: ranks, nodes, kills, a browser, the V2 runner, scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.engines import EngineFactory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/processes" in str(item.path):
            item.add_marker(pytest.mark.engine)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineFactory]:
    """Makes engines in this process, one at a time."""
    from support.engines import EngineFactory, end_process_groups

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_DIST_IDENT", "")  # vLLM's worker sets it, for each engine anew
    end_process_groups()
    factory = EngineFactory(max_alive=1)
    yield factory
    factory.end()
