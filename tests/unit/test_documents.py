"""The documents name files and folders that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FOLDERS = (
    *("bench", "deploy", "docs", "examples", "mixing", "policies", "requirements", "scripts"),
    *("server", "src", "tests", "weights"),
)
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`")
PLACEHOLDER = re.compile(r"(?:^|_)[A-Z]{2,}(?:_|\.)")
"""A part of a path that stands for any name, such as OP_triton.py."""


def test_documents_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md"} <= {path.name for path in DOCUMENTS}
    assert len(DOCUMENTS) > 10


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_exist(document: Path) -> None:
    named = set(PATH.findall(document.read_text(encoding="utf-8")))
    paths = {name for name in named if not PLACEHOLDER.search(Path(name).name)}
    assert [name for name in sorted(paths) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = {target for target in targets if "://" not in target}
    assert [each for each in sorted(local) if not (document.parent / each).exists()] == []
