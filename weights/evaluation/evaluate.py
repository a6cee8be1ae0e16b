"""The evaluation of weightings: all answer the same prompts, are judged, and their KLs measured.

Shapes: P prompts, J responses a prompt, M members.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

import numpy as np

from prefmix.mixing.spec import MixtureSpec
from prefmix.weights.engines.engine import Engine
from prefmix.weights.engines.progress import Progress
from prefmix.weights.engines.prompts import Prompt, hash_of_prompts
from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.evaluation.pairwise_judges import Judge, in_both_orders
from prefmix.weights.evaluation.picked_answers import picked
from prefmix.weights.evaluation.weighting import Weighting
from prefmix.weights.fit.draws import Drawn, Draws, DrawSettings, cache_name
from prefmix.weights.fit.rewards import Reward
from prefmix.weights.fit.score_table import LOGPROB, PROPOSAL
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.settings import FitError


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
        decides = ["evaluation", plain, involved, hash_of_prompts(prompts)]
        name = cache_name(decides, prompts_sha256=spec.prompts_sha256)
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
            unread = getattr(judge, "unread", None)
            words = "" if unread is None else f"; its last words were {unread}"
            raise FitError(
                f"the judge {name!r} could not tell any answer of {row!r} from another{words}"
            )
        columns.append(values)
    found_NO = np.stack(columns, axis=-1) if columns else np.empty((len(asked), 0))
    return found_NO.reshape(len(prompts), num_responses, -1)
