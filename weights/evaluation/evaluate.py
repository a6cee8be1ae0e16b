"""The evaluation of weightings: rewards, win rates against a baseline, and KLs, with intervals.

Every weighting answers the same prompts. The answers to a prompt are one observation. Intervals
come from resampling the prompts, with the same samples for all rows, so that variance which the
rows share does not widen the intervals of their differences.

Shapes: R rows, P prompts, J responses a prompt, O objectives, M members, B resamplings.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np

from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.weights.engines.local import Engine
from prefmix.weights.engines.progress import Progress
from prefmix.weights.engines.prompts import Prompt, hash_of_prompts
from prefmix.weights.evaluation.pairwise_judges import Judge, in_both_orders
from prefmix.weights.evaluation.picked_answers import picked
from prefmix.weights.evaluation.smallest_means import lead, smallest_mean
from prefmix.weights.fit.draws import Drawn, Draws, DrawSettings, cache_name
from prefmix.weights.fit.intervals import Interval, mean_intervals
from prefmix.weights.fit.objective import Floats
from prefmix.weights.fit.score_table import LOGPROB, PROPOSAL
from prefmix.weights.fit.settings import FitError
from prefmix.weights.store.text_tables import aligned

Reward = Callable[
    [Sequence[Prompt], Sequence[str], Sequence[Sequence[int]]], Sequence[float | None]
]
"""(prompts, answers, tokens of the answers) -> one number an answer; None where the reward does not
apply."""

NUM_RESAMPLINGS = 1000
_ENDS = [0.025, 0.975]


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """One row: a name and the weights of the members; members without an entry have 0."""

    name: str
    weights: Mapping[str, float]
    mixing: Mixing = "logits"
    shares: Mapping[str, float] | None = None
    """Shares of the policies in a parameter average that is a member of its own; None if the row is
    none."""
    candidates: int = 1
    """Answers drawn for each that counts, of which one is picked (prefmix.mixing.candidates)."""
    of_grid: bool = False
    """True for a row of the grid between the others; charts show it without its name."""

    @property
    def is_mixture(self) -> bool:
        """True if more than one member has weight."""
        return len(self.taking_part) > 1

    @property
    def is_single(self) -> bool:
        """True if the row is one member as it was given, and no parameter average."""
        return not self.is_mixture and self.shares is None

    @property
    def taking_part(self) -> tuple[str, ...]:
        """Members with weight."""
        return tuple(name for name, weight in self.weights.items() if weight)

    @property
    def shown(self) -> Mapping[str, float]:
        """The weights of a mixture, or the shares of a parameter average."""
        return self.weights if self.shares is None else self.shares

    @property
    def averaged(self) -> Mapping[str, float] | None:
        """The weights at which parameters are averaged, in a member or by the engine; None if they
        are not."""
        return self.weights if self.mixing == "parameters" else self.shares


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
    def wins_BRO(self) -> Floats:
        """Win rates resampled over prompts, [B + 1, R, O]; the first sample is the data itself."""
        num_prompts = self.rewards_RPJO.shape[1]
        picks_BP = np.random.default_rng(self.seed).integers(
            num_prompts, size=(NUM_RESAMPLINGS, num_prompts)
        )
        own = np.arange(num_prompts)
        wins_RPO = self.wins_RPO
        return np.stack([_mean_of_numbers(wins_RPO[:, p], axis=1) for p in (own, *picks_BP)])

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
        wins_BRO = self.wins_BRO
        heading = ["", *self.objectives, *(f"win {name}" for name in self.objectives), "min win"]
        heading += ["tokens", *(f"KL to {name}" for name in self.members)]
        lines = [heading]
        for index, row in enumerate(self.rows):
            wins = [_interval(wins_BRO[:, index, k]) for k in range(len(self.objectives))]
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
        wins_BO, (smallest, interval) = self.wins_BRO[:, index], self.smallest_R[index]
        return {
            "name": row.name,
            "weights": dict(row.weights),
            "mixing": row.mixing,
            "candidates": row.candidates,
            **({} if row.shares is None else {"parameter_average": dict(row.shares)}),
            "rewards": self.rewards_RO[index].tolist(),
            "reward_errors": self.reward_errors_RO[index].tolist(),
            "win_rates": wins_BO[0].tolist(),
            "win_rate_intervals": np.nanquantile(wins_BO[1:], _ENDS, axis=0).T.tolist(),
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


def simplex_grid(num_policies: int, parts: int) -> list[tuple[float, ...]]:
    """All weights in steps of 1 / parts under which at least two policies take part."""
    counts = itertools.product(range(parts + 1), repeat=num_policies)
    return [
        tuple(count / parts for count in row)
        for row in counts
        if sum(row) == parts and max(row) < parts
    ]


def evaluate(
    prompts: Sequence[Prompt],
    rows: Sequence[Weighting],
    rewards: Mapping[str, Reward],
    *,
    spec: MixtureSpec,
    engine: Callable[[], Engine],
    content_hashes: Mapping[str, str],
    cache: Path,
    num_responses: int,
    max_tokens: int,
    judges: Mapping[str, Judge] = MappingProxyType({}),
    kl_members: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Draws answers at temperature 1 under each row's weights, judges them and measures KLs.

    Args:
      prompts: P prompts, the same for every row.
      rows: the first is the baseline of the win rates.
      rewards: objective -> the function that judges answers.
      spec: a mixture with all members that the rows name.
      engine: makes an engine of `spec`; called once, if `cache` lacks something.
      content_hashes: content hash of every member by name.
      cache: folder of the draws.
      num_responses: answers a prompt.
      max_tokens: length limit of an answer, in tokens.
      judges: further objectives -> the judge that compares a row's answers to the first row's, the
        first to the first and so on; what an answer earns is then its win.
      kl_members: the members whose KLs are wanted; all that have weight in rows with candidates.
      seed: seed of drawing answers and of resampling.
      progress: where the stages are shown; None is standard error.
    """
    draws = Draws(
        spec=spec,
        engine=engine,
        cache=cache,
        members=kl_members,
        num_responses=sum(row.candidates for row in rows) * len(prompts) * num_responses,
        progress=progress or Progress(),
    )
    rewards_RPJO, kl_RPM, tokens_R = [], [], []
    baseline: Sequence[str] = ()
    for row in rows:
        settings = DrawSettings(
            weights_M=tuple(row.weights.get(name, 0.0) for name in spec.member_names),
            num_responses=num_responses * row.candidates,
            max_tokens=max_tokens,
            mixing=row.mixing,
            # A seed of its own: rows with the same randomness would have dependent wins. The two
            # ways to mix share theirs: they are compared with each other, and then it helps.
            seed=zlib.crc32(json.dumps([seed, dict(row.shown)], sort_keys=True).encode())
            + (row.candidates > 1),
        )
        # Named by its members: their places differ from one engine's mixture to another's.
        plain = {**asdict(settings), "weights_M": dict(row.weights)}
        involved = {name: content_hashes[name] for name in (*row.weights, *kl_members)}
        name = cache_name(["evaluation", plain, involved, hash_of_prompts(prompts)])
        scoring = row.taking_part if row.candidates > 1 else None
        drawn = draws.draw(name, prompts, settings, title=row.name, members=scoring)
        if row.candidates > 1:
            drawn = picked(drawn, row.weights, row.candidates, seed=settings.seed)
            kl_RPM.append(np.full((len(prompts), len(kl_members)), np.nan))
        else:
            own_N = drawn.table[PROPOSAL].to_numpy()
            ratios_MN = [own_N - drawn.table[f"{LOGPROB}{name}"].to_numpy() for name in kl_members]
            by_prompt = np.reshape(ratios_MN, (len(kl_members), len(prompts), num_responses))
            kl_RPM.append(by_prompt.mean(axis=2).T)
        tokens_R.append(drawn.table["num_tokens"].to_numpy().mean())
        rewards_PJO = _judged(prompts, drawn, rewards, row.name)
        baseline = baseline or drawn.texts
        compared_PJO = _compared(prompts, drawn, baseline, judges, row.name)
        rewards_RPJO.append(np.concatenate([rewards_PJO, compared_PJO], axis=2))
    draws.finish()
    return Evaluation(
        rows=tuple(rows),
        objectives=(*rewards, *judges),
        members=tuple(kl_members),
        rewards_RPJO=np.stack(rewards_RPJO),
        kl_RPM=np.stack(kl_RPM),
        tokens_R=np.array(tokens_R, dtype=np.float64),
        reference=None if spec.reference is None else spec.reference.name,
        seed=seed,
    )


def _judged(
    prompts: Sequence[Prompt], drawn: Drawn, rewards: Mapping[str, Reward], row: str
) -> Floats:
    num_responses = len(drawn.texts) // len(prompts)
    asked = [prompt for prompt in prompts for _ in range(num_responses)]
    columns = []
    for name, reward in rewards.items():
        # A None becomes NaN.
        values = np.array(reward(asked, drawn.texts, drawn.tokens), dtype=np.float64)
        if np.isnan(values).all():
            raise FitError(f"the reward {name!r} applies to none of the answers of {row!r}")
        columns.append(values)
    return np.stack(columns, axis=-1).reshape(len(prompts), num_responses, len(columns))


def _compared(
    prompts: Sequence[Prompt],
    drawn: Drawn,
    baseline: Sequence[str],
    judges: Mapping[str, Judge],
    row: str,
) -> Floats:
    """The wins of a row's answers against the first row's, [P, J, judges]."""
    num_responses = len(drawn.texts) // len(prompts)
    asked = [prompt for prompt in prompts for _ in range(num_responses)]
    columns = []
    for name, judge in judges.items():
        if baseline is drawn.texts:
            values = np.full(len(asked), 0.5)
        else:
            found = in_both_orders(judge, asked, drawn.texts, baseline)
            values = np.array(found, dtype=np.float64)
        if np.isnan(values).all():
            raise FitError(f"the judge {name!r} could not tell any answer of {row!r} from another")
        columns.append(values)
    found_NO = np.stack(columns, axis=-1) if columns else np.empty((len(asked), 0))
    return found_NO.reshape(len(prompts), num_responses, -1)


def _mean_of_numbers(values: Floats, *, axis: int) -> Floats:
    """The mean over an axis, NaN left out; NaN if nothing is left."""
    counts = np.isfinite(values).sum(axis=axis)
    sums = np.nansum(values, axis=axis)
    means: Floats = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means


def _interval(samples_B: Floats) -> str:
    low, high = np.nanquantile(samples_B[1:], _ENDS)
    return _told(samples_B[0], (low, high))


def _told(value: float, interval: Interval) -> str:
    low, high = interval
    return f"{value:.3f} ± {(high - low) / 2:.3f}"
