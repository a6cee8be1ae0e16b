"""Gains of mixtures in every objective, and the intervals of their smallest and mean gains.

    gain_k = (reward_k - reference's reward_k) / (policy k's own reward_k - reference's reward_k)

for objective k. 0 is the reference policy, 1 the policy that was trained for the objective alone. A
max-min mixture is judged by its smallest gain.

A gain is a ratio of means over prompts. To first order it moves with prompt p as the mean of

    g_p = gain + (r_p - b_p - gain (o_p - b_p)) / (o - b)

does, with r, b and o the rewards of the row, the reference and the policy. So the intervals of
means and of their minimum (`prefmix.weights.intervals`) are taken over the g_p: they count the
noise of the scale's ends, and what rows share does not widen those of differences.

Shapes: R rows, P prompts, O objectives.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from examples.comparison import REFERENCE
from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.intervals.means import Interval, mean_intervals
from prefmix.weights.intervals.smallest_means import lead, smallest_mean

Told = tuple[float, Interval]
"""A number and its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Gains:
    """The gains of all rows, prompt by prompt."""

    measured: Evaluation
    gains_RPO: Floats
    """g_p, whose mean over prompts is the gain."""

    @property
    def names(self) -> list[str]:
        """The names of the rows."""
        return [row.name for row in self.measured.rows]

    @property
    def gains_RO(self) -> Floats:
        """The gains."""
        gains_RO: Floats = self.gains_RPO.mean(axis=1)
        return gains_RO

    @cached_property
    def smallest_R(self) -> list[Told]:
        """The smallest gain of each row."""
        return [smallest_mean(gains_PO) for gains_PO in self.gains_RPO]

    @property
    def mean_R(self) -> list[Told]:
        """The mean gain of each row."""
        return [_told(gains_PO.mean(axis=1)) for gains_PO in self.gains_RPO]

    def lead(self, row: int, other: int) -> Told:
        """The smallest gain of a row less that of another."""
        return lead(self.gains_RPO[row], self.gains_RPO[other])

    def mean_lead(self, row: int, other: int) -> Told:
        """The mean gain of a row less that of another."""
        return _told((self.gains_RPO[row] - self.gains_RPO[other]).mean(axis=1))

    def index(self, name: str) -> int:
        """The index of the row of a name."""
        return self.names.index(name)


def measure_gains(measured: Evaluation) -> Gains:
    """Gains of all rows.

    Args:
      measured: with the reference and one row named after each objective among its rows.
    Raises: ValueError if a policy is no better at its objective than the reference policy is.
    """
    means_RPO = measured.rewards_RPJO.mean(axis=2)
    names = [row.name for row in measured.rows]
    objectives = measured.objectives
    base_PO = means_RPO[names.index(REFERENCE)]
    own_PO = np.stack(
        [means_RPO[names.index(name), :, at] for at, name in enumerate(objectives)], axis=1
    )
    scale_O = (own_PO - base_PO).mean(axis=0)
    for objective, scale in zip(objectives, scale_O, strict=True):
        if scale <= 0:
            raise ValueError(
                f"policy {objective!r} is no better at its own objective than the reference; "
                "gains are shares of that difference"
            )
    above_RPO = means_RPO - base_PO
    gains_R1O = above_RPO.mean(axis=1, keepdims=True) / scale_O
    gains_RPO = gains_R1O + (above_RPO - gains_R1O * (own_PO - base_PO)) / scale_O
    return Gains(measured=measured, gains_RPO=gains_RPO)


def gains_table(found: Gains) -> str:
    """One line a row: weights, gains, tokens, smallest and mean gain ± half of the interval."""
    measured = found.measured
    shown = [() if row.is_single else tuple(row.shown.values()) for row in measured.rows]
    width = 5 * max(map(len, shown))
    name_width = max(map(len, found.names)) + 1
    heading = (
        f"{'':<{name_width}}{'weights':^{width}}"
        + "".join(f"{name:>9}" for name in measured.objectives)
        + f"{'tokens':>7}{'smallest gain':>15}{'mean gain':>14}"
    )
    lines = [heading, "-" * len(heading)]
    for index, row in enumerate(measured.rows):
        weights = "".join(f"{weight:>5.2f}" for weight in shown[index]).ljust(width)
        gains = "".join(f"{gain:>+9.2f}" for gain in found.gains_RO[index])
        lines.append(
            f"{row.name:<{name_width}}{weights}{gains}{measured.tokens_R[index]:>7.0f}"
            f"{_shown(found.smallest_R[index]):>15}{_shown(found.mean_R[index]):>14}"
        )
    return "\n".join(lines)


def conclusion(found: Gains, subject: str, *, width: int = 88) -> str:
    """Sentences on the rows that a row beats, loses to, and is not shown to differ from."""
    row = found.index(subject)
    others = [index for index in range(len(found.names)) if index != row]
    leads = {found.names[other]: found.lead(row, other) for other in others}
    lines = [f"Smallest gain of {subject!r} against the other rows (± half of 95 % intervals):"]
    for verdict, names in _sorted_by_verdict(leads).items():
        if names:
            told = [f"{name} ({_shown(leads[name])})" for name in names]
            lines.append(_indented(f"{verdict}: {'; '.join(told)}.", width))
    return "\n".join(lines)


def against(found: Gains, pairs: Sequence[tuple[str, str]], what: str, *, width: int = 88) -> str:
    """Differences of the smallest and of the mean gains of some pairs of rows; a star stands where
    the interval does not hold 0.

    Args:
      found: the gains.
      pairs: (row, row to subtract).
      what: the name of the difference.
    """
    lines = [f"{what} (* the 95 % interval does not hold 0):"]
    for name, other in pairs:
        row, rival = found.index(name), found.index(other)
        smallest, mean = (_starred(f(row, rival)) for f in (found.lead, found.mean_lead))
        lines.append(_indented(f"{name} less {other}: smallest {smallest}, mean {mean}", width))
    return "\n".join(lines)


def _told(values_P: Floats) -> Told:
    (interval,) = mean_intervals(values_P[:, None])
    return float(values_P.mean()), interval


def _shown(told: Told) -> str:
    value, (low, high) = told
    return f"{value:+.2f} ± {(high - low) / 2:.2f}"


def _starred(told: Told) -> str:
    _, (low, high) = told
    return _shown(told) + ("*" if low > 0 or high < 0 else "")


def _sorted_by_verdict(leads: dict[str, Told]) -> dict[str, list[str]]:
    """Names, grouped by the sign of differences whose interval does not hold 0."""
    verdicts: dict[str, list[str]] = {"Ahead": [], "Behind": [], "Not shown to differ": []}
    for name, (_, (low, high)) in leads.items():
        side = "Ahead" if low > 0 else "Behind" if high < 0 else "Not shown to differ"
        verdicts[side].append(name)
    return verdicts


def _indented(text: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    ")
