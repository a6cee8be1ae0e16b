"""SECURITY.md names tests and settings that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_promise_names_a_test_that_exists() -> None:
    table = PAGE.split("## Promises")[1].split("\n## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    last = ""
    for _, _, tests, _ in rows:
        if "the same" not in tests:
            assert "`" in tests, tests
        for name in re.findall(r"`([^`]+)`", tests):
            path = name if name.startswith("tests/") else f"{Path(last).parent}/{name}"
            assert (ROOT / path).exists(), path
            last = path


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (ROOT / target.partition("#")[0]).exists(), target


def test_settings_are_spelled_as_the_code_has_them() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "server").rglob("*.py"))
    for name in set(re.findall(r"PREFMIX_[A-Z_]+", PAGE)):
        assert name.removesuffix("_FILE") in code, name
