"""docs/reliability.md names runs and tests that exist, and figures of runs that are on record."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
SUITE = ROOT / "tests" / "resilience"


def test_every_promise_names_a_run_or_a_test_that_exists() -> None:
    table = PAGE.split("## Promises")[1].split("\n## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 8
    for _, promise, command, _, _ in rows:
        named = re.findall(r"`([^`]+)`", command)
        assert named, promise
        for name in named:
            if name.startswith("pytest"):
                folder = re.search(r"tests/\S+", name)
                assert folder is not None, name
                assert (ROOT / folder[0]).exists(), name
            elif name.startswith("tests/"):
                assert (ROOT / name).exists(), name
            else:
                assert (SUITE / "scenarios" / f"{name}.py").exists(), name


def test_every_file_that_is_named_exists() -> None:
    for name in re.findall(r"`(tests/[\w/.]+)`", PAGE):
        assert (ROOT / name).exists(), name


def test_every_long_run_is_promised_and_its_records_name_a_commit() -> None:
    for path in (SUITE / "scenarios").glob("*.py"):
        if "def main(" not in path.read_text(encoding="utf-8"):
            continue
        assert f"`{path.stem}`" in PAGE, path
        record = SUITE / "results" / f"{path.stem}.jsonl"
        lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
        assert all(json.loads(line)["commit"] for line in lines), path
        # A run without a record says so.
        assert lines or "not on record yet" in _row(path.stem), path


def _row(name: str) -> str:
    """The table's row of a run."""
    return next(line for line in PAGE.splitlines() if line.startswith("|") and f"`{name}`" in line)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / target.partition("#")[0]).exists(), target
