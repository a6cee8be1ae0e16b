"""Warnings are errors here; the engine's tests run code of others that warns."""

import importlib
import warnings

import pytest

from support.kernels import interpreted  # noqa: F401 - before anything else imports Triton


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks every test of this folder; a test's own `filterwarnings` marks come after and win."""
    item.add_marker(pytest.mark.filterwarnings("error"), append=False)


@pytest.fixture(scope="session")
def vllm() -> None:
    """Imports vLLM and its plugins, which takes seconds, sets variables and warns.

    One worker runs all tests that use this fixture (tests/support/groups.py).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("vllm.entrypoints.openai.api_server")
        importlib.import_module("vllm.v1.worker.gpu.sample.states")  # sets variables as well
        importlib.import_module("vllm.plugins").load_general_plugins()
