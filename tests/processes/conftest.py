"""Tests with processes of their own: ranks, nodes, kills, a browser, the V2 runner, scripts."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/processes" in str(item.path):
            item.add_marker(pytest.mark.engine)
