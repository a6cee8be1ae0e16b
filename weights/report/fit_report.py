"""The report of a fit: its texts, tables and charts, on a page of `html_page`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from prefmix.weights.fit.result import FitResult
from prefmix.weights.fit.summary import (
    deployed_numbers,
    distance_name,
    floor_note,
    half_width,
    is_fitted,
    what_was_fitted,
)
from prefmix.weights.report import html_page, plots
from prefmix.weights.report.html_page import PAGE, Chart, scrolling, table
from prefmix.weights.store.durable_file import replace_file

_SHOWN_ABOVE = frozenset({"fitted", "verdict", "certificate", "deployed"})
"""Parts of a store's provenance that the page shows as text and charts."""

_CHARTS = frozenset(
    {"simplex.png", "kl.png", "trajectory.png", "rounds.png", "ess.png", "m_sweep.png"}
)
"""Every chart that some kind of result has."""


def write_report(
    result: FitResult, folder: Path, *, title: str, provenance: Mapping[str, Any]
) -> Path:
    """Writes `report.html` and its charts.

    Args:
      result: the fit.
      folder: made if missing; the charts of an earlier report are replaced or removed.
      title: the page's heading.
      provenance: hashes and settings of the fit; nested mappings become rows with dotted names.
    Returns: the page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    charts = list(_charts(result))
    pictures = html_page.write_charts(folder, charts)
    page = folder / PAGE
    replace_file(page, _page(result, title, provenance, pictures).encode())
    written = {chart.file for chart in charts}
    assert written <= _CHARTS
    for stale in _CHARTS - written:
        (folder / stale).unlink(missing_ok=True)
    return page


def _charts(result: FitResult) -> Iterator[Chart]:
    """The charts of this kind of result, the answer first."""
    if len(result.names) == 3:
        yield Chart(
            file="simplex.png",
            draw=partial(plots.simplex, result),
            caption="All possible weights: a corner is one policy alone, the centre is uniform. "
            + ("The star is the answer, the line the path to it." if is_fitted(result) else ""),
        )
    if result.deployed is not None or result.certificate is not None:
        yield Chart(file="kl.png", draw=partial(plots.kl_bars, result), caption=_kl_caption(result))
    if len(result.path_TK) > 1:
        yield Chart(
            file="trajectory.png",
            draw=partial(plots.trajectory, result),
            caption="The weights along the fit. "
            + (
                "The answer is the last."
                if result.rounds_kl_TK is not None
                else "The mean over the shaded part and all restarts is "
                + ("corrected for the number of responses." if result.is_corrected else "used.")
            ),
        )
    if result.rounds_kl_TK is not None:
        yield Chart(
            file="rounds.png",
            draw=partial(plots.rounds_kl, result),
            caption="Distance of the served mixture from each policy, round by round. At the "
            "optimum the policies that bind the answer are equally far, the others nearer.",
        )
    if result.certificate is not None and result.certificate.ess_by_length:
        yield Chart(
            file="ess.png",
            draw=partial(plots.ess_by_length, result),
            caption="Effective share of the responses by length. Of long responses, few are ones "
            "that the mixture would have written.",
        )
    if result.certificate is not None and len(result.certificate.m_sweep) > 1:
        yield Chart(
            file="m_sweep.png",
            draw=partial(plots.m_sweep, result),
            caption="The same fit from fewer responses a prompt. Weights that still move at the "
            "right are biased; sample more.",
        )


def _kl_caption(result: FitResult) -> str:
    mean = "The dashed line is their mean under the weights" + (
        "." if result.at_floor else "; the longest bar's lead is the gap."
    )
    if result.deployed is None:
        return f"{distance_name(result)} of the fitted mixture to each. {mean}"
    text = "Distance of the deployed mixture to each policy, with 95 % intervals over prompts."
    if result.certificate is not None:
        text += " Diamonds: the same for the product of whole sequences."
    return f"{text} {mean}"


def _page(result: FitResult, title: str, provenance: Mapping[str, Any], pictures: str) -> str:
    notes = " ".join(_sentence(text) for text in _notes(result))
    about = {key: value for key, value in provenance.items() if key not in _SHOWN_ABOVE}
    parts = [
        f"<p>{escape(notes)}</p>",
        _weights_table(result),
        table(["measure", "value"], _numbers(result)),
        pictures,
        _sweep(result),
        html_page.provenance(about),
    ]
    is_good = result.verdict == "trustworthy"
    return html_page.page(title, _sentence(result.verdict), "\n".join(parts), is_good=is_good)


def _notes(result: FitResult) -> list[str]:
    return [text for text in (what_was_fitted(result), floor_note(result)) if text]


def _weights_table(result: FitResult) -> str:
    heading = ["reward" if result.in_reward_form else "policy", "weight", ""]
    deployed, certificate = result.deployed, result.certificate
    error = None if certificate is None else certificate.weight_error
    multipliers = None if deployed is None else deployed.multipliers
    if error is not None:
        heading.append("95 %")
    if deployed is not None:
        heading += ["deployed KL", "95 % interval"]
    if multipliers is not None:
        heading.append("binds")
    if certificate is not None:
        heading.append(distance_name(result))
    rows = []
    for index, (name, weight) in enumerate(result.weights.items()):
        colour = f"var(--policy-{index % len(plots.LIGHT.palette)})"
        bar = f'<td class="bar"><i style="width:{100 * weight:.1f}%;background:{colour}"></i></td>'
        cells = [f"<th>{escape(name)}</th>", f"<td>{weight:.3f}</td>", bar]
        if error is not None:
            cells.append(f"<td>{half_width(error[name])}</td>")
        if deployed is not None:
            low, high = deployed.kl_interval[name]
            cells += [f"<td>{deployed.kl[name]:.2f}</td>", f"<td>{low:.2f} to {high:.2f}</td>"]
        if multipliers is not None:
            cells.append(f"<td>{multipliers[name]:.2f}</td>")
        if certificate is not None:
            cells.append(f"<td>{certificate.kl[name]:.2f}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    return scrolling(f'<table class="weights"><tr>{head}</tr>{"".join(rows)}</table>')


def _numbers(result: FitResult) -> list[tuple[str, str]]:
    rows = []
    if result.deployed is not None:
        rows += [
            (f"{name[:1].lower()}{name[1:]}", ", ".join(told))
            for name, told in deployed_numbers(result)
        ]
    else:
        rows.append(("deployed KLs", "not measured: there was no engine to draw from"))
    if result.certificate is not None:
        found = result.certificate
        low, high = found.gap_interval
        ess = f"{found.ess:.1f} a prompt, {found.ess_fraction:.0%} of those drawn"
        rows += [
            ("objective F", f"{found.objective:.3f} nats"),
            ("gap of the sequences' KLs", f"{found.gap:.3f} nats ({low:.3f} to {high:.3f})"),
            ("effective sample size", ess),
        ]
        if is_fitted(result):
            rows += [
                ("largest correction of a weight", f"{found.correction:.3f}"),
                ("largest difference between starting points", f"{found.seed_spread:.3f}"),
            ]
    return rows


def _sweep(result: FitResult) -> str:
    """The m-sweep in numbers, in a folded section."""
    if result.certificate is None or len(result.certificate.m_sweep) < 2:
        return ""
    rows = [
        (str(row["responses"]), f"{row['objective']:.3f}", *_fixed(row["weights"].values()))
        for row in result.certificate.m_sweep
    ]
    numbers = table(["responses", "F", *result.names], rows, numbers=True)
    return (
        f"<details><summary>The fit from fewer responses, in numbers</summary>{numbers}</details>"
    )


def _fixed(values: Iterable[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
