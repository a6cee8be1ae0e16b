"""docs/architecture.md walks through files and functions that exist."""

from __future__ import annotations

import ast
import re

import pytest

from support.architecture import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WALKS = re.findall(r"^## (One .+?)\n(.+?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
STOP = re.compile(r"^\d+\. `([\w/]+\.py)`((?:,? (?:and )?`[\w.]+`)+):", flags=re.MULTILINE)


def _defined(tree: ast.AST, prefix: str = "") -> set[str]:
    """Functions, classes and methods of a file, as `name` and `Class.name`."""
    names = set[str]()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names |= {prefix + node.name} | _defined(node, f"{prefix}{node.name}.")
    return names


def test_there_are_four_walks() -> None:
    titles = ["One request", "One weight change", "One policy that comes", "One fit"]
    assert [title for title, _ in WALKS] == titles


@pytest.mark.parametrize(("title", "text"), WALKS, ids=[title for title, _ in WALKS])
def test_a_walk_has_at_most_ten_stops_and_each_exists(title: str, text: str) -> None:
    stops = STOP.findall(text)
    assert 3 <= len(stops) <= 10
    assert len(stops) == len(re.findall(r"^\d+\. ", text, flags=re.MULTILINE)), "a stop is unread"
    for path, symbols in stops:
        assert (ROOT / path).exists(), path
        defined = _defined(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        for symbol in re.findall(r"`([\w.]+)`", symbols):
            assert symbol in defined, f"{path} has no {symbol}"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
