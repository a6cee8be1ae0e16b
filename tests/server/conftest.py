"""All tests of this folder start `prefmix serve`, or another command, as a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.preloaded_server import Preloaded
from support.server_process import clean_environment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/server" in str(item.path):
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    """The process that has imported vLLM for the servers of this process's tests."""
    process = Preloaded(clean_environment())
    yield process
    process.close()


@pytest.fixture(scope="session")
def preloaded_pair() -> Iterator[Preloaded]:
    """The same for servers of two API processes, which count together."""
    process = Preloaded(clean_environment(), shared_counts=True)
    yield process
    process.close()
