"""docs/architectures.md is what `make test-architectures` has found, and nothing there is wrong."""

from __future__ import annotations

from architectures.page import PAGE, read_results, render

LAYOUTS = ("full", "trunk")


def test_the_page_is_written_from_the_results() -> None:
    written = render(read_results())
    assert PAGE.read_text(encoding="utf-8") == written, "run make test-architectures"


def test_every_architecture_is_exact_or_refused_or_says_why_not() -> None:
    lines = read_results()
    assert len(lines) > 20
    for line in lines:
        reasons = [line[key] for key in ("unbuilt", "not_run_by_vllm", "untried") if line.get(key)]
        found = [line[layout] for layout in LAYOUTS if layout in line]
        assert len(reasons) == (not found), line["architecture"]
        for each in found:
            assert each["verdict"] in ("exact", "refused"), line["architecture"]
            assert each["verdict"] == "exact" or each["why"], line["architecture"]
