"""The process that traces and compiles for GPUs that are not there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.no_device.script import Scripts


@pytest.fixture(scope="session")
def no_device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripts]:
    """One worker runs all tests that use it (tests/support/groups.py)."""
    scripts = Scripts(tmp_path_factory.mktemp("no_device"))
    yield scripts
    scripts.close()
