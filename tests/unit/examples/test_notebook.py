"""The notebook imports what exists; tests/processes/test_python_scripts.py runs it."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import pytest

from prefmix.weights.fit.job import FitJob
from support.notebook import code_cells

NOTEBOOK = Path(__file__).resolve().parents[3] / "examples" / "mixing.ipynb"


@pytest.fixture(scope="module")
def nodes() -> list[ast.AST]:
    """Everything in its cells."""
    cells = code_cells(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    return [node for cell in cells for node in ast.walk(ast.parse("".join(cell["source"])))]


def test_imported_names_exist(nodes: list[ast.AST]) -> None:
    imported = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imported if str(node.module).startswith("prefmix")]
    assert ours
    for node in ours:
        module = importlib.import_module(str(node.module))
        assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


def test_the_fits_keywords_exist(nodes: list[ast.AST]) -> None:
    known = set(FitJob.__init__.__annotations__)
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    (job,) = [call for call in calls if getattr(call.func, "id", "") == "FitJob"]
    assert {keyword.arg for keyword in job.keywords} <= known
