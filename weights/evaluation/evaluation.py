"""The measurements of an evaluation and what follows from them: means, win rates, intervals.

The answers to a prompt are one observation. All rows answer the same prompts, so that variance they
share does not widen the intervals of their differences (prefmix.weights.intervals).

Shapes: R rows, P prompts, J responses a prompt, O objectives, M members.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prefmix.weights.evaluation.weighting import Weighting
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.intervals.means import Interval, known_mean_intervals, mean_intervals
from prefmix.weights.intervals.smallest_means import lead, smallest_mean
from prefmix.weights.store.text_tables import aligned


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The measurements; row 0 is the baseline of the win rates."""

    rows: tuple[Weighting, ...]
    objectives: tuple[str, ...]
    members: tuple[str, ...]
    """The members whose KLs were measured."""
    rewards_RPJO: Floats
    """NaN where a reward does not apply; means and win rates leave these answers out."""
    kl_RPM: Floats
    """KL(row || member) at each prompt, in nats a response; NaN where a row picks candidates, whose
    law is known only up to a constant."""
    tokens_R: Floats
    """Mean tokens of a response."""
    reference: str | None = None
    """The row of the reference policy."""
    seed: int = 0

    @property
    def kl_RM(self) -> Floats:
        """KL(row || member), in nats a response."""
        kl_RM: Floats = self.kl_RPM.mean(axis=1)
        return kl_RM

    @property
    def rewards_RO(self) -> Floats:
        """Mean rewards, [R, O]."""
        num_prompts, num_responses = self.rewards_RPJO.shape[1:3]
        flat = (-1, num_prompts * num_responses, len(self.objectives))
        return _mean_of_numbers(self.rewards_RPJO.reshape(flat), axis=1)

    @property
    def mean_rewards_RPO(self) -> Floats:
        """Mean rewards at each prompt, [R, P, O]; NaN where none applies."""
        return _mean_of_numbers(self.rewards_RPJO, axis=2)

    @property
    def reward_errors_RO(self) -> Floats:
        """Standard errors of the mean rewards, with prompts as observations, [R, O]."""
        means_RPO = self.mean_rewards_RPO
        squares_RPO = (means_RPO - _mean_of_numbers(means_RPO, axis=1)[:, None]) ** 2
        counts_RO = np.isfinite(means_RPO).sum(axis=1)
        errors_RO: Floats = np.sqrt(_mean_of_numbers(squares_RPO, axis=1) / counts_RO)
        return errors_RO

    @cached_property
    def wins_RPO(self) -> Floats:
        """Share of answer pairs that the row wins against the baseline; ties count half."""
        ours, theirs = self.rewards_RPJO[:, :, :, None], self.rewards_RPJO[:1, :, None]
        wins_RPJJO = np.where(
            np.isnan(ours) | np.isnan(theirs), np.nan, (ours > theirs) + 0.5 * (ours == theirs)
        )
        pairs = (*wins_RPJJO.shape[:2], -1, wins_RPJJO.shape[-1])
        return _mean_of_numbers(wins_RPJJO.reshape(pairs), axis=2)

    @cached_property
    def wins_RO(self) -> list[list[tuple[float, Interval]]]:
        """Win rate and its 95 % interval by row and objective."""
        return [
            [(rate, (max(0.0, low), min(1.0, high))) for rate, (low, high) in found]
            for found in map(known_mean_intervals, self.wins_RPO)
        ]

    @property
    def reward_intervals_RO(self) -> list[list[Interval]]:
        """95 % interval of the mean reward by row and objective."""
        return [
            [interval for _, interval in known_mean_intervals(means_PO)]
            for means_PO in self.mean_rewards_RPO
        ]

    @cached_property
    def smallest_R(self) -> tuple[tuple[float, Interval], ...]:
        """The smallest win rate of each row over the objectives, and its 95 % interval."""
        return tuple(smallest_mean(wins_PO, seed=self.seed) for wins_PO in self.wins_RPO)

    @property
    def mean_wins_RP(self) -> Floats:
        """The mean of a row's win rates over the objectives, at each prompt, [R, P]."""
        return _mean_of_numbers(self.wins_RPO, axis=2)

    def lead(self, row: int, other: int) -> tuple[float, float, float]:
        """(difference of the smallest win rates, low and high end of its 95 % interval)."""
        value, (low, high) = lead(self.wins_RPO[row], self.wins_RPO[other], seed=self.seed)
        return value, low, high

    @property
    def cells(self) -> list[list[str]]:
        """The table: mean rewards, win rates ± half of their 95 % interval, their minimum, KLs."""
        heading = ["", *self.objectives, *(f"win {name}" for name in self.objectives), "min win"]
        heading += ["tokens", *(f"KL to {name}" for name in self.members)]
        lines = [heading]
        for index, row in enumerate(self.rows):
            wins = [_told(*found) for found in self.wins_RO[index]]
            lines.append(
                [
                    row.name,
                    *(f"{reward:.3f}" for reward in self.rewards_RO[index]),
                    *(wins if index else ["-"] * len(wins)),
                    _told(*self.smallest_R[index]) if index else "-",
                    f"{self.tokens_R[index]:.1f}",
                    *("-" if np.isnan(kl) else f"{kl:.2f}" for kl in self.kl_RM[index]),
                ]
            )
        return lines

    def table(self) -> str:
        """`cells` as aligned text."""
        return aligned(self.cells)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready form; intervals are at 95 %, over prompts."""
        return {
            "objectives": self.objectives,
            "members": self.members,
            "rows": [self._row_dict(index, row) for index, row in enumerate(self.rows)],
        }

    def _row_dict(self, index: int, row: Weighting) -> dict[str, object]:
        smallest, interval = self.smallest_R[index]
        return {
            "name": row.name,
            "weights": dict(row.weights),
            "mixing": row.mixing,
            "candidates": row.candidates,
            **({} if row.shares is None else {"parameter_average": dict(row.shares)}),
            "rewards": self.rewards_RO[index].tolist(),
            "reward_errors": self.reward_errors_RO[index].tolist(),
            "reward_intervals": [list(each) for each in self.reward_intervals_RO[index]],
            "win_rates": [rate for rate, _ in self.wins_RO[index]],
            "win_rate_intervals": [list(each) for _, each in self.wins_RO[index]],
            "smallest_win_rate": smallest,
            "smallest_win_rate_interval": list(interval),
            "tokens": float(self.tokens_R[index]),
            **self._kl_dict(index),
        }

    def _kl_dict(self, index: int) -> dict[str, object]:
        """The KLs of a row; null for one that picks candidates."""
        if not self.members or np.isnan(self.kl_RPM[index]).any():
            nothing = [None] * len(self.members)
            return {"kl": nothing, "kl_intervals": nothing}
        return {
            "kl": self.kl_RM[index].tolist(),
            "kl_intervals": mean_intervals(self.kl_RPM[index]),
        }


def _mean_of_numbers(values: Floats, *, axis: int) -> Floats:
    """The mean over an axis, NaN left out; NaN if nothing is left."""
    counts = np.isfinite(values).sum(axis=axis)
    sums = np.nansum(values, axis=axis)
    means: Floats = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means


def _told(value: float, interval: Interval) -> str:
    low, high = interval
    return f"{value:.3f} ± {(high - low) / 2:.3f}"
