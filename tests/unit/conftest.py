"""Warnings are errors here; the engine's tests run code of others that warns."""

import pytest

from support.kernels import interpreted  # noqa: F401 - before anything else imports Triton


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks every test of this folder; a test's own `filterwarnings` marks come after and win."""
    item.add_marker(pytest.mark.filterwarnings("error"), append=False)
