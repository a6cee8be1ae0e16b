"""The weights of one profile, or of the default, over the versions of a store."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from prefmix.weights.fit.summary import short
from prefmix.weights.report.plots import LIGHT, Theme, lines, new_axes
from prefmix.weights.store.profiles import ProfileSet

_MAX_LABEL = 14


def weights_over_versions(
    versions: Sequence[ProfileSet], *, profile: str | None = None, theme: Theme = LIGHT
) -> Figure:
    """Draws each member's weight in each version; nothing where the profile did not exist.

    Args:
      versions: a store's history, the oldest first; at least one.
      profile: the profile; None takes each version's default, and names it where it changes.
      theme: the colours.
    Raises: ValueError if no version has the profile.
    """
    if profile is not None and not any(profile in each.profiles for each in versions):
        raise ValueError(
            f"no version that is kept has a profile {profile!r:.80}; 'prefmix weights history' "
            "lists them"
        )
    members = versions[-1].member_names
    weights_TM = np.array(
        [[_weight(each, profile, member) for member in members] for each in versions]
    )
    places_T = np.arange(len(versions), dtype=np.float64)
    figure, axes = new_axes(theme)
    lines(axes, theme, members, places_T, weights_TM, marked=len(versions))
    axes.set_xlim(0, max(len(versions) - 1, 0.5))
    numbers = [each.version for each in versions]
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: _number_at(numbers, at)))
    axes.set_xlabel("version")
    axes.set_ylabel("weight, default" if profile is None else f"weight, {short(profile)}")
    axes.yaxis.label.set_parse_math(False)
    if profile is None:
        _name_defaults(axes, versions, theme)
    return figure


def _weight(version: ProfileSet, profile: str | None, member: str) -> float:
    name = version.default if profile is None else profile
    if name not in version.profiles or member not in version.member_names:
        return math.nan
    return version.weights(name)[member]


def _number_at(numbers: Sequence[int], at: float) -> str:
    """The number of the version at a place of the axis; nothing between two places."""
    is_place = at == round(at) and 0 <= at < len(numbers)
    return str(numbers[round(at)]) if is_place else ""


def _name_defaults(axes: Axes, versions: Sequence[ProfileSet], theme: Theme) -> None:
    before: str | None = None
    for place, version in enumerate(versions):
        if version.default == before:
            continue
        before = version.default
        axes.axvline(place, color=theme.faint, lw=1.0, zorder=0)
        axes.annotate(
            short(before, _MAX_LABEL),
            (place, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(1, 3),
            textcoords="offset points",
            color=theme.ink,
            fontsize=8,
            rotation=15,
            parse_math=False,
        )
