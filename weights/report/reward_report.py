"""The report of a fit to rewards: the verdict, the gains, the front that the fit passed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prefmix.weights.fit.summary import short
from prefmix.weights.report import html_page
from prefmix.weights.report.html_page import PAGE, Chart, table
from prefmix.weights.report.plots import Theme, by_round, colour_of, lines, new_axes
from prefmix.weights.reward_fit.result import RewardFitResult
from prefmix.weights.reward_fit.summary import aim_numbers, front_rows, what_was_fitted
from prefmix.weights.store.durable_file import replace_file

_STEM = "front"
_SHOWN_ABOVE = frozenset({"fitted", "verdict", "gains", "scales"})


def write_reward_report(
    result: RewardFitResult, folder: Path, *, title: str, provenance: Mapping[str, Any]
) -> Path:
    """Writes `report.html` and its charts.

    Args:
      result: the fit.
      folder: made if missing; the charts of an earlier report are replaced or removed.
      title: the page's heading.
      provenance: hashes and settings of the fit.
    Returns: the page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    charts = list(_charts(result))
    pictures = html_page.write_charts(folder, charts)
    for stale in set(folder.glob("*.png")) - {folder / chart.file for chart in charts}:
        stale.unlink()
    found = result.measured
    gains = [
        (
            name,
            f"{found.gain[name]:+.3f}",
            "{:+.3f} to {:+.3f}".format(*found.gain_interval[name]),
            "-" if found.multipliers is None else f"{found.multipliers[name]:.2f}",
            f"{result.scales.zero_O[o]:.4g}",
            f"{result.scales.one_O[o]:.4g}, {result.scales.best_of_O[o]}",
        )
        for o, name in enumerate(result.objectives)
    ]
    alone = [
        (name, *(f"{gain:+.3f}" for gain in gains_O))
        for name, gains_O in zip(result.members, result.alone_RO, strict=True)
    ]
    weights = [
        (name, f"{weight:.3f}", f"{found.kl[name]:.2f}") for name, weight in result.weights.items()
    ]
    about = {key: value for key, value in provenance.items() if key not in _SHOWN_ABOVE}
    parts = [
        f"<p>{escape(what_was_fitted(result).capitalize())}.</p>",
        table(["policy", "weight", "deployed KL, nats"], weights, numbers=True),
        table(
            ["reward", "gain", "95 % interval", "binds", "gain 0 is", "gain 1 is"],
            gains,
            numbers=True,
        ),
        table(
            ["measure", "value"], [(name, ", ".join(told)) for name, told in aim_numbers(result)]
        ),
        pictures,
        "<h2>The front that the fit passed</h2>",
        table(
            ["", *(f"weight of {name}" for name in result.names), *result.objectives],
            front_rows(result),
            numbers=True,
        ),
        "<h2>Members alone</h2>",
        table(["", *result.objectives], alone, numbers=True),
        html_page.provenance(about),
    ]
    verdict = f"{result.verdict[:1].upper()}{result.verdict[1:]}."
    is_good = result.verdict == "trustworthy"
    page = html_page.page(title, verdict, "\n".join(parts), is_good=is_good)
    path = folder / PAGE
    replace_file(path, page.encode())
    return path


def _charts(result: RewardFitResult) -> Iterator[Chart]:
    for first, second in itertools.combinations(range(len(result.objectives)), 2):
        yield Chart(
            file=f"{_STEM}-{first}-{second}.png",
            draw=partial(_front, result, first, second),
            caption=f"Gains in {result.objectives[first]} and {result.objectives[second]}: dots "
            "are rounds, the line joins those that no other beats in all gains, the star is the "
            "answer with its 95 % intervals, circles are the policies alone. Rounds have fewer "
            "prompts than the answer.",
        )
    yield Chart(
        file="gains.png",
        draw=partial(_gains, result),
        caption="The gains measured in every round. Where the smallest gain is made large, those "
        "that bind it should meet.",
    )
    yield Chart(
        file="trajectory.png",
        draw=partial(_trajectory, result),
        caption="The weights along the fit. The answer is the last.",
    )


def _front(result: RewardFitResult, first: int, second: int, theme: Theme) -> Figure:
    figure, axes = new_axes(theme, height=3.8)
    found = result.measured
    answer_O = np.array([found.gain[name] for name in result.objectives])
    points_X2 = np.vstack([result.gains_TO, answer_O])[:, [first, second]]
    axes.plot(*points_X2[:-1].T, "o", color=theme.palette[6], ms=3.5)
    front_X2 = points_X2[result.front]
    front_X2 = front_X2[front_X2[:, 0].argsort()]
    axes.plot(*front_X2.T, color=theme.palette[6], lw=1.0, ls="--", zorder=1)
    ends_O2 = np.array([found.gain_interval[name] for name in result.objectives])
    spread_O2 = np.abs(ends_O2 - answer_O[:, None])
    axes.errorbar(
        answer_O[first],
        answer_O[second],
        xerr=spread_O2[[first]].T,
        yerr=spread_O2[[second]].T,
        fmt="*",
        color=theme.ink,
        ms=11,
        lw=1.0,
    )
    for row, name in enumerate(result.members):
        x, y = result.alone_RO[row, [first, second]]
        colour = colour_of(theme, row)
        axes.plot(x, y, "o", color=colour, ms=7)
        axes.annotate(
            short(name, 14),
            (x, y),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            color=colour,
            fontsize=8.5,
            parse_math=False,
        )
    axes.margins(0.15)
    axes.set_xlabel(f"gain in {short(result.objectives[first], 40)}")
    axes.set_ylabel(f"gain in {short(result.objectives[second], 40)}")
    return figure


def _gains(result: RewardFitResult, theme: Theme) -> Figure:
    return by_round(theme, result.objectives, result.gains_TO, label="gain")


def _trajectory(result: RewardFitResult, theme: Theme) -> Figure:
    figure, axes = new_axes(theme)
    num_rounds = len(result.path_TK) - 1
    rounds = np.arange(num_rounds + 1)
    lines(axes, theme, result.names, rounds, result.path_TK, marked=num_rounds)
    axes.set_xlim(0, num_rounds)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel("weight")
    return figure
