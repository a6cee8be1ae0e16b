"""The report of an evaluation: verdict, a chart for every pair of objectives, and table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from prefmix.weights.evaluation import both_ways
from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.evaluation.verdict import beats_its_members, verdict
from prefmix.weights.report import html_page
from prefmix.weights.report.html_page import PAGE, Chart, table
from prefmix.weights.report.pareto import pareto
from prefmix.weights.store.durable_file import replace_file

_STEM = "pareto"


def write_evaluation_report(
    found: Evaluation, folder: Path, *, title: str, provenance: Mapping[str, Any]
) -> Path:
    """Writes `report.html` and a `pareto-*.png` for every pair of objectives.

    Args:
      found: the evaluation.
      folder: made if missing; an earlier report there is replaced.
      title: the page's heading.
      provenance: hashes and settings of the evaluation.
    Returns: the page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    charts = [
        Chart(
            file=f"{_STEM}-{first}-{second}.png",
            draw=partial(pareto, found, first, second),
            caption=f"{found.objectives[first]} against {found.objectives[second]}: circles are "
            "policies, the square is the reference, stars are mixtures, hollow diamonds parameter "
            "averages, small marks the grid. Bars are 95 % intervals; the dashed line joins what "
            "no other row beats in both.",
        )
        for first, second in itertools.combinations(range(len(found.objectives)), 2)
    ]
    for stale in set(folder.glob(f"{_STEM}-*.png")) - {folder / chart.file for chart in charts}:
        stale.unlink()
    answer, *others = verdict(found)
    heading, *rows = found.cells
    parts = [
        *(f"<p>{escape(sentence)}</p>" for sentence in others),
        html_page.write_charts(folder, charts),
        table(heading, rows, numbers=True),
        "<p>win: share of pairs of answers in which the row's is better than the first row's, ties "
        "half; min win: the smallest over the objectives; ± half of the 95 % interval over "
        "prompts. KL(row ‖ member) in nats an answer.</p>",
        *_differences(found),
        html_page.provenance(provenance),
    ]
    page = html_page.page(title, answer, "\n".join(parts), is_good=beats_its_members(found))
    path = folder / PAGE
    replace_file(path, page.encode())
    return path


def _differences(found: Evaluation) -> Iterator[str]:
    """The tables of rows at the same weights, with what they show."""
    for cells, text in (
        (
            both_ways.cells(found),
            "Mixed logits less mixed parameters at the same weights, on the same prompts: mean "
            "rewards, the mean and the smallest win rate (± half of the 95 % interval), and the "
            "largest KL from a policy with weight.",
        ),
        (
            both_ways.candidate_cells(found),
            "Answers picked from candidates less answers drawn once, at the same weights, on the "
            "same prompts.",
        ),
    ):
        heading, *rows = cells
        if rows:
            yield table(heading, rows, numbers=True)
            yield f"<p>{escape(text)}</p>"
