"""The report of a fit: one HTML page that needs nothing but itself, and its charts as PNG files.

The pictures are embedded, there is no script and no address to fetch; the page follows the
reader's light or dark setting and fits a phone.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from weights import plots
from weights.fit_result import FitResult
from weights.report_page import TEMPLATE
from weights.summary import distance_name, floor_note, is_fitted, what_was_fitted

PAGE = "report.html"
_SHOWN_ABOVE = frozenset({"fitted", "verdict", "certificate", "deployed"})
"""Parts of a store's provenance that the page shows as text and charts."""


_CHARTS = frozenset(
    {"simplex.png", "kl.png", "trajectory.png", "rounds.png", "ess.png", "m_sweep.png"}
)
"""Every chart that some kind of result has."""


@dataclass(frozen=True, kw_only=True)
class _Figure:
    """A chart and what a reader should see in it."""

    file: str
    chart: plots.Chart
    caption: str


def write_report(
    result: FitResult, folder: Path, *, title: str, provenance: Mapping[str, Any]
) -> Path:
    """Writes `report.html` and its charts.

    Args:
      result: the fit.
      folder: where to; made if missing; the charts of an earlier report are replaced, those that
        this one does not have removed.
      title: the page's heading.
      provenance: what the fit was made from; nested mappings become rows with dotted names.
    Returns: the page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = list(_figures(result))
    pictures = []
    for figure in figures:
        light, dark = (
            plots.png(figure.chart(result, theme)) for theme in (plots.LIGHT, plots.DARK)
        )
        _replace(folder / figure.file, light)
        pictures.append(_picture(figure.caption, light, dark))
    page = folder / PAGE
    _replace(page, _page(result, title, provenance, pictures).encode())
    written = {figure.file for figure in figures}
    assert written <= _CHARTS
    for stale in _CHARTS - written:
        (folder / stale).unlink(missing_ok=True)
    return page


def _figures(result: FitResult) -> Iterator[_Figure]:
    """The charts that this kind of result has, the answer first."""
    if len(result.names) == 3:
        yield _Figure(
            file="simplex.png",
            chart=plots.simplex,
            caption="All possible weights: a corner is one policy alone, the centre is uniform. "
            + ("The star is the answer, the line the way there." if is_fitted(result) else ""),
        )
    if result.deployed is not None or result.certificate is not None:
        yield _Figure(file="kl.png", chart=plots.kl_bars, caption=_kl_caption(result))
    if len(result.path_TK) > 1:
        yield _Figure(
            file="trajectory.png",
            chart=plots.trajectory,
            caption="The weights on their way. The answer is the mean over the shaded half"
            + (", over all restarts." if result.certificate is not None else "."),
        )
    if result.rounds_kl_TK is not None:
        yield _Figure(
            file="rounds.png",
            chart=plots.rounds_kl,
            caption="How far the served mixture was from each policy, round by round. At the "
            "optimum all policies that have weight are equally far.",
        )
    if result.certificate is not None and result.certificate.ess_by_length:
        yield _Figure(
            file="ess.png",
            chart=plots.ess_by_length,
            caption="Effective share of the responses by length. Long responses leave few that "
            "the mixture would have written.",
        )
    if result.certificate is not None and len(result.certificate.m_sweep) > 1:
        yield _Figure(
            file="m_sweep.png",
            chart=plots.m_sweep,
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


def _page(result: FitResult, title: str, provenance: Mapping[str, Any], pictures: list[str]) -> str:
    return TEMPLATE.substitute(
        title=escape(title),
        light=_colours(plots.LIGHT),
        dark=_colours(plots.DARK),
        tone="good" if result.verdict == "trustworthy" else "careful",
        verdict=escape(_sentence(result.verdict)),
        fitted=escape(" ".join(_sentence(text) for text in _notes(result))),
        weights=_weights_table(result),
        numbers=_table(["measure", "value"], _numbers(result)),
        pictures="\n".join(pictures),
        sweep=_sweep(result),
        provenance=_table(["setting", "value"], list(_flat(provenance))),
    )


def _notes(result: FitResult) -> list[str]:
    return [text for text in (what_was_fitted(result), floor_note(result)) if text]


def _colours(theme: plots.Theme) -> str:
    """The policies' colours in the charts, for the page's own bars."""
    return " ".join(f"--policy-{index}: {colour};" for index, colour in enumerate(theme.palette))


def _weights_table(result: FitResult) -> str:
    heading = ["reward" if result.in_reward_form else "policy", "weight", ""]
    deployed, certificate = result.deployed, result.certificate
    if deployed is not None:
        heading += ["deployed KL", "95 % interval"]
    if certificate is not None:
        heading.append(distance_name(result))
    rows = []
    for index, (name, weight) in enumerate(result.weights.items()):
        colour = f"var(--policy-{index % len(plots.LIGHT.palette)})"
        bar = f'<td class="bar"><i style="width:{100 * weight:.1f}%;background:{colour}"></i></td>'
        cells = [f"<th>{escape(name)}</th>", f"<td>{weight:.3f}</td>", bar]
        if deployed is not None:
            low, high = deployed.kl_interval[name]
            cells += [f"<td>{deployed.kl[name]:.2f}</td>", f"<td>{low:.2f} to {high:.2f}</td>"]
        if certificate is not None:
            cells.append(f"<td>{certificate.kl[name]:.2f}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    return _scrolling(f'<table class="weights"><tr>{head}</tr>{"".join(rows)}</table>')


def _numbers(result: FitResult) -> list[tuple[str, str]]:
    rows = []
    if result.deployed is not None:
        deployed = result.deployed
        low, high = deployed.gap_interval
        measured = f"{deployed.num_responses:,} fresh, {deployed.mean_tokens:.1f} tokens each"
        rows += [
            ("gap of the deployed KLs", f"{deployed.gap:.3f} nats ({low:.3f} to {high:.3f})"),
            ("responses measured", measured),
        ]
    else:
        rows.append(("deployed KLs", "not measured: there was no engine to draw from"))
    if result.certificate is not None:
        found = result.certificate
        low, high = found.gap_interval
        ess = f"{found.ess:.1f} a prompt, {found.ess_fraction:.0%} of those drawn"
        rows += [
            ("objective F", f"{found.objective:.3f} nats"),
            ("gap of the fitted objective", f"{found.gap:.3f} nats ({low:.3f} to {high:.3f})"),
            ("effective sample size", ess),
        ]
        if is_fitted(result):
            rows.append(("largest difference between seeds", f"{found.seed_spread:.3f}"))
    return rows


def _sweep(result: FitResult) -> str:
    """The m-sweep in numbers, folded away."""
    if result.certificate is None or len(result.certificate.m_sweep) < 2:
        return ""
    rows = [
        (str(row["responses"]), f"{row['objective']:.3f}", *_fixed(row["weights"].values()))
        for row in result.certificate.m_sweep
    ]
    table = _table(["responses", "F", *result.names], rows, numbers=True)
    return f"<details><summary>The fit from fewer responses, in numbers</summary>{table}</details>"


def _fixed(values: Iterable[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """A table of plain text; the first column holds the names."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    kind = "numbers" if numbers else "pairs"
    return _scrolling(f'<table class="{kind}"><tr>{head}</tr>{body}</table>')


def _scrolling(table: str) -> str:
    return f'<div class="wide">{table}</div>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as rows with dotted names."""
    for key, value in values.items():
        if not prefix and key in _SHOWN_ABOVE:
            continue
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(map(str, value))
        else:
            yield name, "-" if value is None else str(value)


def _picture(caption: str, light: bytes, dark: bytes) -> str:
    """A chart in both themes; the browser shows the one that suits the reader."""
    text = escape(caption.strip())
    return (
        "<figure><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">'
        f'<img src="{_data(light)}" alt="{text}"></picture>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _data(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all: a reader never sees half a page."""
    aside = path.with_name(f"{path.name}.partial")
    aside.write_bytes(content)
    os.replace(aside, path)
