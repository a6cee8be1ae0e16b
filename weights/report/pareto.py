"""The chart of an evaluation: the trade-off between two objectives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.summary import short
from prefmix.weights.report.plots import Theme, colour_of, new_axes

_MAX_LABEL = 20


def pareto_optimal(points_RO: Floats) -> list[int]:
    """Indices of the Pareto-optimal rows: no other row is at least as good in all columns and
    better in one."""
    return [
        index
        for index, point_O in enumerate(points_RO)
        if not ((points_RO >= point_O).all(axis=1) & (points_RO > point_O).any(axis=1)).any()
    ]


def pareto(found: Evaluation, first: int, second: int, theme: Theme) -> Figure:
    """Mean rewards of two objectives, one point a row, and the line through the Pareto front.

    Bars are 95 % intervals over prompts. Rows of the grid are small dots without a name.
    """
    figure, axes = new_axes(theme, height=3.8)
    points_R2 = found.rewards_RO[:, [first, second]]
    ends_RO2 = np.array(found.reward_intervals_RO)
    bars_R2 = (ends_RO2[..., 1] - ends_RO2[..., 0])[:, [first, second]] / 2
    front = sorted(pareto_optimal(points_R2), key=lambda index: float(points_R2[index, 0]))
    axes.plot(*points_R2[front].T, color=theme.palette[6], lw=1.0, ls="--", zorder=1)
    looks = _looks(found, theme)
    for row, look, point, bars in zip(found.rows, looks, points_R2, bars_R2, strict=True):
        x, y = point
        if not row.of_grid:
            axes.errorbar(
                x, y, xerr=bars[0], yerr=bars[1], fmt="none", ecolor=look.colour, lw=0.8, zorder=2
            )
        face = theme.paper if row.averaged is not None else look.colour
        axes.plot(x, y, look.marker, color=look.colour, mfc=face, ms=look.size, zorder=3)
    axes.margins(0.12)
    for index, (row, look) in enumerate(zip(found.rows, looks, strict=True)):
        if not row.of_grid:
            # An average often lies close to its mixture.
            below = row.averaged is not None
            _name(axes, short(row.name, _MAX_LABEL), points_R2[index], look.colour, below=below)
    axes.set_xlabel(f"{short(found.objectives[first], 40)}, mean reward")
    axes.set_ylabel(f"{short(found.objectives[second], 40)}, mean reward")
    return figure


@dataclass(frozen=True)
class _Look:
    marker: str
    colour: str
    size: float


def _looks(found: Evaluation, theme: Theme) -> list[_Look]:
    """Circles are policies, squares the reference, stars mixtures, diamonds parameter averages."""
    looks = []
    num_policies = 0
    for row in found.rows:
        if row.of_grid:
            looks.append(_Look("o" if row.averaged is None else "D", theme.palette[6], 3.5))
        elif row.averaged is not None:
            looks.append(_Look("D", theme.ink, 6))
        elif row.is_mixture:
            looks.append(_Look("*", theme.ink, 10))
        elif found.reference in row.taking_part:
            looks.append(_Look("s", theme.ink, 6))
        else:
            looks.append(_Look("o", colour_of(theme, num_policies), 7))
            num_policies += 1
    return looks


def _name(axes: Axes, text: str, point: Floats, colour: str, *, below: bool) -> None:
    """Writes a row's name beside its point, on the side with room."""
    low, high = axes.get_xlim()
    is_right = point[0] > low + 0.75 * (high - low)
    axes.annotate(
        text,
        (point[0], point[1]),
        xytext=(-7 if is_right else 7, -12 if below else 4),
        textcoords="offset points",
        ha="right" if is_right else "left",
        color=colour,
        fontsize=8.5,
        parse_math=False,
    )
