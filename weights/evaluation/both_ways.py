"""Two rows at the same weights: mixed logits beside the mean of parameters, and answers that are
picked from candidates beside those of single draws.

The rows of a pair answer the same prompts, so the prompts' own share in the variance drops out of
a difference.

Shapes: P prompts, O objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.intervals.means import known_mean_intervals

ALIKE, APART = 1.6, 8.5
"""The rule of thumb: KLs between policies, in nats a token, up to which both ways earned about the
same and from which mixed logits earned more. docs/mixing.md has the measurements."""

Told = tuple[float, float, float]
"""A difference, and the low and high end of its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows of equal weights."""

    name: str
    """The name of the first row."""
    first: int
    """Index of the row that mixes logits, or that picks candidates."""
    second: int
    """Index of the row that mixes parameters, or whose member is their average; or of the row that
    draws each answer once."""
    rewards: tuple[Told, ...]
    """Mean reward of the first less that of the second, by objective."""
    mean_wins: Told
    """The same of the mean win rate over the objectives."""
    smallest: Told
    """The same of the smallest win rate."""
    of_grid: bool

    @property
    def differs(self) -> bool:
        """True if some objective's interval does not contain 0."""
        return any(low > 0 or high < 0 for _, low, high in self.rewards)


def pairs(found: Evaluation) -> list[Pair]:
    """The pairs of rows at the same weights, in the order of the rows that mix logits."""
    averaged = {
        _key(weights): index
        for index, row in enumerate(found.rows)
        if (weights := row.averaged) is not None
    }
    both = []
    for index, row in enumerate(found.rows):
        other = averaged.get(_key(row.weights))
        if other is not None and row.is_mixture and row.averaged is None and row.candidates == 1:
            both.append(_pair(found, index, other))
    return both


def candidate_pairs(found: Evaluation) -> list[Pair]:
    """The pairs of rows with and without candidates."""
    drawn_once = {
        _key(row.weights): index
        for index, row in enumerate(found.rows)
        if row.averaged is None and row.candidates == 1
    }
    return [
        _pair(found, index, drawn_once[_key(row.weights)])
        for index, row in enumerate(found.rows)
        if row.candidates > 1
    ]


def _pair(found: Evaluation, first: int, second: int) -> Pair:
    (mean_wins,) = _differences((found.mean_wins_RP[first] - found.mean_wins_RP[second])[:, None])
    means_RPO = found.mean_rewards_RPO
    return Pair(
        name=found.rows[first].name,
        first=first,
        second=second,
        rewards=tuple(_differences(means_RPO[first] - means_RPO[second])),
        mean_wins=mean_wins,
        smallest=found.lead(first, second),
        of_grid=found.rows[first].of_grid,
    )


def cells(found: Evaluation) -> list[list[str]]:
    """The table of both ways to mix; only its heading if there are no pairs."""
    lines = [["logits less parameters", *_heading(found)]]
    if found.members:
        lines[0] += ["largest KL, logits", "parameters"]
    for pair in pairs(found):
        kl_RM = found.kl_RM[[pair.first, pair.second]]
        own = [found.members.index(name) for name in found.rows[pair.first].taking_part]
        largest = [f"{kl:.2f}" for kl in kl_RM[:, own].max(axis=1)] if found.members else []
        lines.append([pair.name, *_differing(pair), *largest])
    return lines


def candidate_cells(found: Evaluation) -> list[list[str]]:
    """The table of candidates; only its heading if there are none."""
    lines = [["candidates less single draws", *_heading(found)]]
    return lines + [[pair.name, *_differing(pair)] for pair in candidate_pairs(found)]


def _heading(found: Evaluation) -> list[str]:
    names = [*found.objectives, "mean win", "min win"]
    return [f"{name}, difference" for name in names]


def _differing(pair: Pair) -> list[str]:
    return [_told(each) for each in (*pair.rewards, pair.mean_wins, pair.smallest)]


def policies_apart(found: Evaluation) -> float | None:
    """The largest KL(policy || another policy), in nats a token; None without two policies."""
    single = {row.taking_part[0]: at for at, row in enumerate(found.rows) if row.is_single}
    policies = [name for name in single if name in found.members and name != found.reference]
    apart = [
        float(found.kl_RM[single[one], found.members.index(other)] / found.tokens_R[single[one]])
        for one in policies
        for other in policies
        if one != other
    ]
    return max(apart, default=None)


def rule_of_thumb(found: Evaluation) -> str | None:
    """The rule on the choice between the ways, applied to these policies; None without two."""
    apart = policies_apart(found)
    if apart is None:
        return None
    if apart <= ALIKE:
        seen = (
            f"up to {ALIKE:g} the smallest win rates of both ways were within .03 of each other: "
            "mixed parameters, at the cost of one policy, serve as well"
        )
    elif apart < APART:
        seen = f"between {ALIKE:g} and {APART:g} it depends: compare both ways"
    else:
        seen = (
            f"at {APART:g} mixed logits had the higher smallest win rate at all weights, by .02 to "
            ".07"
        )
    return (
        "Rule of thumb, from small demo policies alone (docs/mixing.md): these policies are up to "
        f"{apart:.2f} nats a token apart; {seen}."
    )


def to_dicts(found: Evaluation) -> dict[str, list[dict[str, object]]]:
    """JSON-ready form: each difference is [value, low, high]."""
    tables = {"both_ways": pairs(found), "candidates": candidate_pairs(found)}
    names = {"both_ways": ("logits", "parameters"), "candidates": ("candidates", "single_draws")}
    return {
        table: [
            {
                names[table][0]: found.rows[pair.first].name,
                names[table][1]: found.rows[pair.second].name,
                "rewards": [list(each) for each in pair.rewards],
                "mean_win_rate": list(pair.mean_wins),
                "smallest_win_rate": list(pair.smallest),
            }
            for pair in found_pairs
        ]
        for table, found_pairs in tables.items()
    }


def _differences(difference_PX: Floats) -> list[Told]:
    """The means over prompts, those without a number left out, with their intervals."""
    return [(value, *interval) for value, interval in known_mean_intervals(difference_PX)]


def _key(weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(weights.items()))


def _told(each: Told) -> str:
    value, low, high = each
    return f"{value:+.3f} ± {(high - low) / 2:.3f}"
