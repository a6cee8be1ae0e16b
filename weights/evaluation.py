"""What weightings buy: rewards, win rates against a baseline and KLs, each with its uncertainty.

Every weighting answers the same prompts. A prompt's answers are one observation, and intervals come
from resampling prompts, the same for all rows, so that what rows have in common does not blur their
differences.

Shapes: R rows, P prompts, J responses a prompt, O objectives, M members, B resamplings.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weights.engine import Engine, Response, Tokens
from weights.progress import Progress
from weights.prompts import Prompt
from weights.tables import aligned

Floats = NDArray[np.float64]
Reward = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]
"""(prompts, answers) -> one number an answer."""

NUM_RESAMPLINGS = 1000


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """One row: a name and the weights of the members."""

    name: str
    weights_M: tuple[float, ...]

    @property
    def is_mixture(self) -> bool:
        """Whether more than one member takes part."""
        return sum(weight != 0 for weight in self.weights_M) > 1


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured; row 0 is the baseline."""

    rows: tuple[Weighting, ...]
    objectives: tuple[str, ...]
    members: tuple[str, ...]
    rewards_RPJO: Floats
    kl_RM: Floats
    """KL(row || member), nats a response."""
    seed: int = 0

    @property
    def rewards_RO(self) -> Floats:
        """Mean rewards."""
        means_RO: Floats = self.rewards_RPJO.mean(axis=(1, 2))
        return means_RO

    @property
    def wins_RPO(self) -> Floats:
        """Share of pairs of answers in which a row's is better than the baseline's; ties half."""
        ours, theirs = self.rewards_RPJO[:, :, :, None], self.rewards_RPJO[:1, :, None]
        wins_RPJJO = (ours > theirs) + 0.5 * (ours == theirs)
        wins_RPO: Floats = wins_RPJJO.mean(axis=(2, 3))
        return wins_RPO

    @property
    def wins_BRO(self) -> Floats:
        """Win rates of all objectives, resampled over prompts; the first is the data's own."""
        num_prompts = self.rewards_RPJO.shape[1]
        picks_BP = np.random.default_rng(self.seed).integers(
            num_prompts, size=(NUM_RESAMPLINGS, num_prompts)
        )
        own = np.arange(num_prompts)
        wins_RPO = self.wins_RPO
        wins_BRO: Floats = np.stack([wins_RPO[:, p].mean(axis=1) for p in (own, *picks_BP)])
        return wins_BRO

    def verdict(self) -> str:
        """Whether the best mixture's smallest win rate beats the best single member's."""
        smallest_BR = self.wins_BRO.min(axis=2)
        mixtures = [i for i, row in enumerate(self.rows) if row.is_mixture]
        singles = [i for i, row in enumerate(self.rows) if not row.is_mixture]
        if not mixtures:
            return "No mixture was measured."
        best = max(mixtures, key=lambda i: smallest_BR[0, i])
        rival = max(singles, key=lambda i: smallest_BR[0, i])
        lead_B = smallest_BR[:, best] - smallest_BR[:, rival]
        low, high = np.quantile(lead_B[1:], [0.025, 0.975])
        beats = "beats" if low > 0 else "is not shown to beat"
        return (
            f"The best mixture, {self.rows[best].name}, {beats} the best single policy, "
            f"{self.rows[rival].name}, in the smallest win rate: {smallest_BR[0, best]:.3f} "
            f"against {smallest_BR[0, rival]:.3f}, difference {lead_B[0]:+.3f}, "
            f"95 % interval {low:+.3f} to {high:+.3f}."
            + (
                " The best of several rows was picked on these prompts, which flatters it."
                if len(mixtures) > 1
                else ""
            )
        )

    def table(self) -> str:
        """Mean rewards, win rates with the half-width of their 95 % interval, minimum, KLs."""
        wins_BRO = self.wins_BRO
        smallest_BR = wins_BRO.min(axis=2)
        heading = ["", *self.objectives, *(f"win {name}" for name in self.objectives), "min win"]
        heading += [f"KL to {name}" for name in self.members]
        lines = [heading]
        for index, row in enumerate(self.rows):
            wins = [_interval(wins_BRO[:, index, k]) for k in range(len(self.objectives))]
            lines.append(
                [
                    row.name,
                    *(f"{reward:.3f}" for reward in self.rewards_RO[index]),
                    *(wins if index else ["-"] * len(wins)),
                    _interval(smallest_BR[:, index]) if index else "-",
                    *(f"{kl:.2f}" for kl in self.kl_RM[index]),
                ]
            )
        return aligned(lines)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready form."""
        wins_BRO = self.wins_BRO
        return {
            "objectives": self.objectives,
            "members": self.members,
            "rows": [
                {
                    "name": row.name,
                    "weights": dict(zip(self.members, row.weights_M, strict=True)),
                    "rewards": self.rewards_RO[index].tolist(),
                    "win_rates": wins_BRO[0, index].tolist(),
                    "smallest_win_rate": float(wins_BRO[0, index].min()),
                    "kl": self.kl_RM[index].tolist(),
                }
                for index, row in enumerate(self.rows)
            ],
            "verdict": self.verdict(),
        }


def simplex_grid(num_policies: int, parts: int) -> list[tuple[float, ...]]:
    """All weights in steps of 1 / parts that use at least two policies."""
    counts = itertools.product(range(parts + 1), repeat=num_policies)
    return [
        tuple(count / parts for count in row)
        for row in counts
        if sum(row) == parts and max(row) < parts
    ]


def evaluate(
    engine: Engine,
    prompts: Sequence[Prompt],
    rows: Sequence[Weighting],
    rewards: Mapping[str, Reward],
    members: Sequence[str],
    *,
    num_responses: int,
    max_tokens: int,
    seed: int,
) -> Evaluation:
    """Draws answers at temperature 1 under each row's weights, judges them and measures KLs.

    Args:
      engine: its responses carry their text.
      rows: the first is the baseline of the win rates.
      members: of the engine's mixture, in order.
    """
    contexts = engine.tokenize(prompts)
    one_hot_MM = np.eye(len(members))
    stage = Progress().stage("evaluate", len(rows), "rows")
    rewards_RPJO: list[Floats] = []
    kl_RM: list[list[float]] = []
    with stage.working():
        for index, row in enumerate(rows):
            drawn = engine.sample(
                contexts,
                row.weights_M,
                num_responses=num_responses,
                max_tokens=max_tokens,
                # Rows that shared their randomness would win more or less often than chance.
                seed=seed + index * len(prompts) * num_responses,
            )
            rewards_RPJO.append(_judged(prompts, drawn, rewards))
            pairs = _pairs(contexts, drawn)
            own = np.mean([response.logprob for some in drawn for response in some])
            scores_M = [np.mean(engine.score(pairs, one_hot.tolist())) for one_hot in one_hot_MM]
            kl_RM.append([float(own - score) for score in scores_M])
            stage.advance(1)
    return Evaluation(
        rows=tuple(rows),
        objectives=tuple(rewards),
        members=tuple(members),
        rewards_RPJO=np.stack(rewards_RPJO),
        kl_RM=np.array(kl_RM),
        seed=seed,
    )


def _judged(
    prompts: Sequence[Prompt], drawn: Sequence[Sequence[Response]], rewards: Mapping[str, Reward]
) -> Floats:
    asked = [prompt for prompt, some in zip(prompts, drawn, strict=True) for _ in some]
    texts = [response.text for some in drawn for response in some]
    columns = [reward(asked, texts) for reward in rewards.values()]
    return np.array(columns).T.reshape(len(prompts), -1, len(columns))


def _pairs(
    contexts: Sequence[Tokens], drawn: Sequence[Sequence[Response]]
) -> list[tuple[Tokens, Tokens]]:
    return [
        (context, response.tokens)
        for context, some in zip(contexts, drawn, strict=True)
        for response in some
    ]


def _interval(samples_B: Floats) -> str:
    low, high = np.quantile(samples_B[1:], [0.025, 0.975])
    return f"{samples_B[0]:.3f} ± {(high - low) / 2:.3f}"
