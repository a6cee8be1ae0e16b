"""Gains of mixtures in every objective, and tests of their differences.

    gain_k = (reward_k - reference's reward_k) / (policy k's own reward_k - reference's reward_k)

for objective k. 0 is the reference policy, 1 the policy that was trained for the objective alone. A
max-min mixture is judged by its smallest gain. Errors are bootstrapped over prompts, with the same
samples for all rows, so that variance which the rows share does not widen their differences.

Shapes: R rows, P prompts, J responses a prompt, O objectives, B bootstrap samples.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.comparison import REFERENCE
from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.fit.sequence_level.objective import Floats

NUM_BOOTSTRAP = 2000


@dataclass(frozen=True, kw_only=True)
class Gains:
    """The gains of all rows, with their uncertainty."""

    measured: Evaluation
    rewards_BRO: Floats
    gains_RO: Floats
    gains_BRO: Floats

    @property
    def names(self) -> list[str]:
        """The names of the rows."""
        return [row.name for row in self.measured.rows]

    @property
    def smallest_R(self) -> Floats:
        """The smallest gain of each row."""
        smallest_R: Floats = self.gains_RO.min(axis=1)
        return smallest_R

    def interval(self, row: int) -> tuple[float, float]:
        """95 % bootstrap interval of a row's smallest gain."""
        low, high = np.quantile(self.gains_BRO[:, row].min(axis=1), [0.025, 0.975])
        return float(low), float(high)

    def lead(self, row: int, other: int) -> tuple[float, float]:
        """(difference of the smallest gains, its standard error)."""
        smallest_BR = self.gains_BRO.min(axis=2)
        error = (smallest_BR[:, row] - smallest_BR[:, other]).std(ddof=1)
        return float(self.smallest_R[row] - self.smallest_R[other]), float(error)

    def reward_lead(self, row: int, other: int, objective: int) -> tuple[float, float]:
        """(difference of the mean rewards of one objective, its standard error)."""
        samples_B = self.rewards_BRO[:, row, objective] - self.rewards_BRO[:, other, objective]
        rewards_RO = self.measured.rewards_RO
        difference = rewards_RO[row, objective] - rewards_RO[other, objective]
        return float(difference), float(samples_B.std(ddof=1))

    def index(self, name: str) -> int:
        """The index of the row of a name."""
        return self.names.index(name)


def measure_gains(measured: Evaluation, *, seed: int = 0) -> Gains:
    """Gains of all rows.

    Args:
      measured: with the reference and one row named after each objective among its rows.
      seed: seed of the bootstrap.
    Raises: ValueError if a policy is no better at its objective than the reference policy is.
    """
    means_RPO = measured.rewards_RPJO.mean(axis=2)
    num_prompts = means_RPO.shape[1]
    names = [row.name for row in measured.rows]
    objectives = measured.objectives
    reference = names.index(REFERENCE)
    own_O = [names.index(objective) for objective in objectives]
    rng = np.random.default_rng(seed)
    counts_BP = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), NUM_BOOTSTRAP)
    rewards_BRO = np.einsum("bp,rpo->bro", counts_BP, means_RPO) / num_prompts
    rewards_RO = means_RPO.mean(axis=1)

    def gains(rewards: Floats) -> Floats:
        base = rewards[..., [reference], :]
        own = rewards[..., own_O, np.arange(len(own_O))][..., None, :]
        share: Floats = (rewards - base) / (own - base)
        return share

    for index, (objective, place) in enumerate(zip(objectives, own_O, strict=True)):
        if rewards_RO[place, index] <= rewards_RO[reference, index]:
            raise ValueError(
                f"policy {objective!r} is no better at its own objective than the reference; "
                "gains are shares of that difference"
            )
    return Gains(
        measured=measured,
        rewards_BRO=rewards_BRO,
        gains_RO=gains(rewards_RO),
        gains_BRO=gains(rewards_BRO),
    )


def gains_table(found: Gains) -> str:
    """One line a row: weights, mean rewards, tokens, smallest gain with its interval."""
    measured = found.measured
    shown = [() if row.is_single else tuple(row.shown.values()) for row in measured.rows]
    width = 5 * max(map(len, shown))
    heading = (
        f"{'':<16}{'weights':^{width}}"
        + "".join(f"{name:>9}" for name in measured.objectives)
        + f"{'tokens':>7}{'min gain':>9}  {'95 % interval':<14}"
    )
    lines = [heading.rstrip(), "-" * len(heading)]
    for index, row in enumerate(measured.rows):
        weights = "".join(f"{weight:>5.2f}" for weight in shown[index]).ljust(width)
        rewards = "".join(f"{reward:>+9.2f}" for reward in measured.rewards_RO[index])
        low, high = found.interval(index)
        lines.append(
            f"{row.name:<16}{weights}{rewards}{measured.tokens_R[index]:>7.0f}"
            f"{found.smallest_R[index]:>+9.2f}  {low:+.2f} to {high:+.2f}"
        )
    return "\n".join(lines)


def conclusion(found: Gains, subject: str, *, width: int = 88) -> str:
    """Sentences on the rows that a row beats, loses to, and does not differ from by two errors."""
    row = found.index(subject)
    others = [index for index in range(len(found.names)) if index != row]
    leads = {found.names[other]: found.lead(row, other) for other in others}
    sentences = [f"Smallest gain of {subject!r} against the other rows (± standard error):"]
    for verdict, names in _sorted_by_verdict(leads).items():
        if names:
            told = [f"{name} ({leads[name][0]:+.2f} ± {leads[name][1]:.2f})" for name in names]
            sentences.append(f"{verdict}: {', '.join(told)}.")
    lines = [sentences[0], *(_indented(text, width) for text in sentences[1:])]
    for name in (REFERENCE, "uniform"):
        if name != subject:
            lines.append(_indented(_by_objective(found, row, name), width, indent=""))
    return "\n".join(lines)


def against(found: Gains, pairs: Sequence[tuple[str, str]], what: str, *, width: int = 88) -> str:
    """Differences of the smallest gains of some pairs of rows, starred beyond two standard errors.

    Args:
      found: the gains.
      pairs: (row, row to subtract).
      what: the name of the difference in the sentence.
    """
    told = []
    for name, other in pairs:
        difference, error = found.lead(found.index(name), found.index(other))
        star = "*" if abs(difference) > 2 * error else ""
        told.append(f"{name} {difference:+.2f} ± {error:.2f}{star}")
    return _indented(f"{what}: {', '.join(told)} (* beyond two standard errors).", width, indent="")


def _by_objective(found: Gains, row: int, name: str) -> str:
    other = found.index(name)
    leads = {
        objective: found.reward_lead(row, other, index)
        for index, objective in enumerate(found.measured.objectives)
    }
    parts = [
        f"{verdict.lower()} in {', '.join(names)}"
        for verdict, names in _sorted_by_verdict(leads).items()
        if names
    ]
    return f"Mean rewards against {name!r}: {'; '.join(parts)}."


def _sorted_by_verdict(leads: dict[str, tuple[float, float]]) -> dict[str, list[str]]:
    """Names, grouped by the sign of differences of more than two standard errors."""
    verdicts: dict[str, list[str]] = {"Ahead": [], "Behind": [], "No difference beyond noise": []}
    for name, (difference, error) in leads.items():
        if abs(difference) > 2 * error:
            verdicts["Ahead" if difference > 0 else "Behind"].append(name)
        else:
            verdicts["No difference beyond noise"].append(name)
    return verdicts


def _indented(text: str, width: int, indent: str = "  ") -> str:
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent + "  ")
