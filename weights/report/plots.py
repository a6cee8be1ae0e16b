"""The charts of a fit's report, drawn with Matplotlib's object interface: no global state.

Each chart is drawn for a light or a dark page. A policy has the same colour and marker in all
charts, from the palette of Okabe and Ito, which colour-blind readers can tell apart. Its name
stands beside its line.

Shapes: K policies, T steps or rounds.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prefmix.weights.fit.result import FitResult
from prefmix.weights.fit.sequence_level.certificate import Certificate
from prefmix.weights.fit.sequence_level.mirror_descent import first_averaged
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.summary import distance_name, short


@dataclass(frozen=True, kw_only=True)
class Theme:
    """The colours of a page."""

    paper: str
    ink: str
    faint: str
    """Colour of the grid and of areas behind the data."""
    palette: tuple[str, ...]


LIGHT = Theme(
    paper="#ffffff",
    ink="#1f2328",
    faint="#d5d9de",
    palette=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a6761d", "#56b4e9", "#555555"),
)
DARK = Theme(
    paper="#1b1f24",
    ink="#e6e8eb",
    faint="#3d444d",
    palette=("#4aa8e0", "#f08a4b", "#2fc79b", "#e3a3c6", "#e6b450", "#8fd0f5", "#b8bec6"),
)

_MARKERS = "osD^vP"
_MAX_LABEL = 14
_SIZE_INCHES = (4.8, 3.2)
"""Narrow, so that the text is readable at the width of a phone."""
_DPI = 200


def png(figure: Figure) -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes; the text of the page shows them.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def trajectory(result: FitResult, theme: Theme) -> Figure:
    """The weights along the fit; of a descent, the mean over the shaded part is used."""
    figure, axes = new_axes(theme)
    num_steps = len(result.path_TK) - 1
    if result.rounds_kl_TK is None:
        start = 1 + first_averaged(num_steps, result.averages)
        axes.axvspan(start, num_steps, color=theme.faint, alpha=0.45, lw=0)
    lines(axes, theme, result.names, np.arange(num_steps + 1), result.path_TK, marked=num_steps)
    axes.set_xlim(0, num_steps)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    unit = "round" if result.rounds_kl_TK is not None else "step of mirror descent"
    axes.set_xlabel(unit)
    axes.set_ylabel("weight")
    return figure


def rounds_kl(result: FitResult, theme: Theme) -> Figure:
    """KL(mixture || policy) of every round of the mixture sampler: the lines should meet."""
    assert result.rounds_kl_TK is not None
    label = "KL(mixture || policy), nats a response"
    return by_round(theme, result.names, result.rounds_kl_TK, label=label)


def by_round(theme: Theme, names: Sequence[str], values_TK: Floats, *, label: str) -> Figure:
    """One line a name over the rounds of a fit."""
    figure, axes = new_axes(theme)
    rounds = np.arange(1, len(values_TK) + 1)
    lines(axes, theme, names, rounds, values_TK, marked=len(rounds))
    axes.set_xlim(1, len(rounds))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    return figure


def simplex(result: FitResult, theme: Theme) -> Figure:
    """The triangle of all weights of three policies, the path on it and the answer."""
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
    figure, axes = new_axes(theme)
    axes.set_axis_off()
    axes.set_aspect("equal")
    for share in (0.25, 0.5, 0.75, 1.0):
        for corner in range(3):
            others = np.delete(corners, corner, axis=0)
            line = share * others + (1 - share) * corners[corner]
            border = share == 1.0
            colour = theme.ink if border else theme.faint
            axes.plot(*line.T, color=colour, lw=1.0 if border else 0.7, zorder=1)
    for index, (name, (x, y)) in enumerate(zip(result.names, corners, strict=True)):
        below = index < 2
        axes.text(
            x,
            y - 0.04 if below else y + 0.03,
            short(name, _MAX_LABEL),
            color=colour_of(theme, index),
            ha="center",
            va="top" if below else "bottom",
            weight="bold",
            parse_math=False,
        )
    path = result.path_TK @ corners
    if len(path) > 1:
        axes.plot(*path.T, color=theme.palette[6], lw=1.0, zorder=2)
        axes.plot(*path[0], "o", color=theme.palette[6], ms=5, zorder=3)
        _note(axes, theme, path[0], "start", (-6, -4))
    answer = result.weights_K @ corners
    axes.plot(*answer, "*", color=theme.ink, ms=13, zorder=4)
    label = ", ".join(f"{weight:.2f}" for weight in result.weights_K)
    _note(axes, theme, answer, label, (10, 2) if answer[0] < 0.6 else (-10, 8))
    axes.set_xlim(-0.25, 1.25)
    axes.set_ylim(-0.15, 0.98)
    return figure


def kl_bars(result: FitResult, theme: Theme) -> Figure:
    """Distance of the mixture from every policy; the dashed line is the mean under the weights."""
    num_policies = len(result.names)
    figure, axes = new_axes(theme, height=max(1.9, 0.9 + 0.32 * num_policies))
    place_K = np.arange(num_policies)
    colours = [colour_of(theme, index) for index in range(num_policies)]
    deployed, certificate = result.deployed, result.certificate
    if deployed is not None:
        kl_K = np.array([deployed.kl[name] for name in result.names])
        ends = np.array([deployed.kl_interval[name] for name in result.names])
        spread = np.maximum(np.abs(ends.T - kl_K), 0.0)
        axes.barh(place_K, kl_K, color=colours, height=0.62)
        axes.errorbar(kl_K, place_K, xerr=spread, fmt="none", ecolor=theme.ink, capsize=3, lw=1.2)
        label = "KL(deployed mixture || policy), nats a response"
    else:
        assert certificate is not None
        kl_K = np.array([certificate.kl[name] for name in result.names])
        axes.barh(place_K, kl_K, color=colours, height=0.62)
        label = f"{distance_name(result)}, nats a response"
    if deployed is not None and certificate is not None:
        fitted_K = [certificate.kl[name] for name in result.names]
        axes.plot(
            fitted_K, place_K, "D", color=theme.paper, mec=theme.ink, ms=5.5, mew=1.1, zorder=4
        )
    axes.axvline(float(result.weights_K @ kl_K), color=theme.ink, lw=1.0, ls="--")
    names = [short(name, _MAX_LABEL) for name in result.names]
    axes.set_yticks(place_K, names, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label)
    return figure


def ess_by_length(result: FitResult, theme: Theme) -> Figure:
    """Effective share of the drawn responses by their length."""
    rows = _certificate(result).ess_by_length
    figure, axes = new_axes(theme)
    lengths = [row["mean_tokens"] for row in rows]
    axes.plot(lengths, [row["ess_fraction"] for row in rows], "o-", color=theme.palette[0])
    axes.axhline(0.1, color=theme.palette[1], lw=1.2, ls="--")
    axes.annotate(
        "too few below",
        (1, 0.1),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        color=theme.palette[1],
        fontsize=8,
    )
    axes.set_ylim(0, 1)
    axes.set_xlabel("mean tokens of a prompt's responses (quartiles)")
    axes.set_ylabel("effective share of responses")
    return figure


def m_sweep(result: FitResult, theme: Theme) -> Figure:
    """The weights from fewer responses a prompt: what still moves at the right is biased."""
    rows = _certificate(result).m_sweep
    figure, axes = new_axes(theme)
    counts = np.array([row["responses"] for row in rows], dtype=np.float64)
    weights_TK = np.array([[row["weights"][name] for name in result.names] for row in rows])
    lines(axes, theme, result.names, counts, weights_TK, marked=len(rows))
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{count:.0f}" for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("responses a prompt")
    axes.set_ylabel("fitted weight")
    return figure


def new_axes(theme: Theme, *, height: float = _SIZE_INCHES[1]) -> tuple[Figure, Axes]:
    """An empty chart in the colours of a page."""
    figure = Figure(
        figsize=(_SIZE_INCHES[0], height), dpi=_DPI, facecolor=theme.paper, layout="constrained"
    )
    axes = figure.add_subplot(facecolor=theme.paper)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.ink)
    axes.tick_params(colors=theme.ink, labelsize=9)
    axes.xaxis.label.set(color=theme.ink, fontsize=9.5)
    axes.yaxis.label.set(color=theme.ink, fontsize=9.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.grid(visible=True, color=theme.faint, lw=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def lines(
    axes: Axes,
    theme: Theme,
    names: Sequence[str],
    x_T: Floats | np.ndarray,
    y_TK: Floats,
    *,
    marked: int,
) -> None:
    """One line a policy, with its name at the right end, and markers if there are few points.

    A line has a gap where a value is NaN.
    """
    for index, y_T in enumerate(y_TK.T):
        marker = _MARKERS[index % len(_MARKERS)] if marked <= 40 else ""
        colour, style = colour_of(theme, index), _style(theme, index)
        axes.plot(x_T, y_T, color=colour, ls=style, lw=1.6, marker=marker, ms=4, clip_on=False)
    low, high = min(0.0, float(np.nanmin(y_TK))), float(np.nanmax(y_TK)) * 1.05
    high = high if high > low else low + 1
    axes.set_ylim(low, high)
    spots = _spread(np.nan_to_num(y_TK[-1]), least=(high - low) / 18, low=low, high=high)
    for index, (name, y) in enumerate(zip(names, spots, strict=True)):
        axes.annotate(
            short(name, _MAX_LABEL),
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(7, 0),
            textcoords="offset points",
            color=colour_of(theme, index),
            va="center",
            fontsize=8.5 if len(names) <= 10 else 6.5,
            parse_math=False,
        )


def _spread(heights_K: Floats, *, least: float, low: float, high: float) -> Floats:
    """Moves labels apart until they are `least` from each other, in the same order."""
    least = min(least, (high - low) / max(len(heights_K), 1))
    order = np.argsort(heights_K, kind="stable")
    ladder_K = least * np.arange(len(order))
    # Raising each label over the one below it, then half of that back down, keeps groups centred.
    up_K = np.maximum.accumulate(heights_K[order] - ladder_K)
    down_K = np.minimum.accumulate((heights_K[order] - ladder_K)[::-1])[::-1]
    spots_K = np.empty(len(order))
    spots_K[order] = np.clip((up_K + down_K) / 2, low, high - ladder_K[-1]) + ladder_K
    return spots_K


def _note(axes: Axes, theme: Theme, point: Floats, text: str, offset: tuple[float, float]) -> None:
    x, y = point
    axes.annotate(
        text,
        (x, y),
        xytext=offset,
        textcoords="offset points",
        ha="left" if offset[0] > 0 else "right",
        color=theme.ink,
        fontsize=8.5,
    )


def _certificate(result: FitResult) -> Certificate:
    assert result.certificate is not None
    return result.certificate


def colour_of(theme: Theme, index: int) -> str:
    """The colour of a policy by its number, the same in all charts."""
    return theme.palette[index % len(theme.palette)]


def _style(theme: Theme, index: int) -> str:
    """The line style of a policy: it changes when the palette begins again."""
    return ("-", "--", ":", "-.")[index // len(theme.palette) % 4]
