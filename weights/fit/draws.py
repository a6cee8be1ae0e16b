"""Responses drawn and scored in parts on disk, so that a killed fit goes on where it was.

A draw is a folder of Parquet parts: `sample-00000.parquet` (tokens, text, log-probability under
what they were drawn with) and `score-<member>-00000.parquet` for every scored member. A part is
written aside and renamed, so it is whole or not there; existing parts are never made again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefmix.mixing.spec import MixtureSpec
from prefmix.weights.engines.local import Engine, Tokens
from prefmix.weights.engines.progress import Stage
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.fit.score_table import LOGPROB, PROPOSAL

PART_PROMPTS = 64
"""Prompts a part: what a kill can cost."""


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """What is drawn."""

    weights_M: tuple[float, ...]
    """The mixture drawn from, one weight per member."""
    num_responses: int
    """Responses a prompt."""
    max_tokens: int
    """Longest response, in tokens."""
    seed: int
    """Equal seeds draw equal responses on one machine."""


def draw(
    folder: Path,
    *,
    prompts: Sequence[Prompt],
    settings: DrawSettings,
    spec: MixtureSpec,
    engine: Callable[[], Engine],
    members: Sequence[str],
    sampling: Stage,
    scoring: Stage,
    title: str = "",
) -> Any:
    """Draws and scores, or takes what is there; returns an Arrow table in score-table form.

    Args:
      folder: of this draw's parts; made if missing.
      prompts: P prompts.
      settings: what is drawn.
      spec: the mixture.
      engine: gives the engine; only called when a part is missing.
      members: whose log-probabilities are wanted.
      sampling, scoring: the stages that advance by each part's responses.
      title: what the draw is for, to be shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        prompts[begin : begin + PART_PROMPTS] for begin in range(0, len(prompts), PART_PROMPTS)
    ]
    samples = [folder / f"sample-{index:05}.parquet" for index in range(len(parts))]
    with sampling.working(title):
        for index, (part, path) in enumerate(zip(parts, samples, strict=True)):
            is_new = not path.exists()
            if is_new:
                _write(path, _sample(engine(), part, settings, offset=index * PART_PROMPTS))
            sampling.advance(len(part) * settings.num_responses, is_new=is_new)
    columns = {}
    for name in members:
        with scoring.working(f"{title}, {name}" if title else name):
            columns[name] = _scores(folder, samples, name, spec, engine, scoring)
    whole = pa.concat_tables([pq.read_table(path) for path in samples])
    table = whole.select(["prompt_id", "response_id", "num_tokens", PROPOSAL])
    for name, values in columns.items():
        table = table.append_column(f"{LOGPROB}{name}", pa.array(values, type=pa.float64()))
    return table


def texts(folder: Path) -> list[str]:
    """What the responses of a draw say, in the order of its table."""
    paths = sorted(folder.glob("sample-*.parquet"))
    return [text for path in paths for text in pq.read_table(path)["text"].to_pylist()]


def _sample(engine: Engine, part: Sequence[Prompt], settings: DrawSettings, *, offset: int) -> Any:
    prompts = engine.tokenize(part)
    drawn = engine.sample(
        prompts,
        settings.weights_M,
        num_responses=settings.num_responses,
        max_tokens=settings.max_tokens,
        # Seeds of different parts and fits must not overlap.
        seed=(settings.seed * 1_000_003 + offset * settings.num_responses) % 2**31,
    )
    rows = [
        {
            "prompt_id": prompt.id,
            "response_id": index,
            "num_tokens": len(response.tokens),
            PROPOSAL: response.logprob,
            "prompt_tokens": list(prompt_tokens),
            "tokens": list(response.tokens),
            "text": response.text,
        }
        for prompt, prompt_tokens, responses in zip(part, prompts, drawn, strict=True)
        for index, response in enumerate(responses)
    ]
    return pa.Table.from_pylist(rows)


def _scores(
    folder: Path,
    samples: Sequence[Path],
    name: str,
    spec: MixtureSpec,
    engine: Callable[[], Engine],
    scoring: Stage,
) -> np.ndarray:
    """One pass: every response under one member alone."""
    one_hot = [float(member == name) for member in spec.member_names]
    values = []
    for index, sample in enumerate(samples):
        path = folder / f"score-{name}-{index:05}.parquet"
        is_new = not path.exists()
        if is_new:
            scores = engine().score(list(_pairs(sample)), one_hot)
            _write(path, pa.table({"logprob": scores}))
        values.append(pq.read_table(path)["logprob"].to_numpy())
        scoring.advance(len(values[-1]), is_new=is_new)
    return np.concatenate(values)


def _pairs(sample: Path) -> Iterator[tuple[Tokens, Tokens]]:
    table = pq.read_table(sample, columns=["prompt_tokens", "tokens"]).to_pylist()
    return ((tuple(row["prompt_tokens"]), tuple(row["tokens"])) for row in table)


def _write(path: Path, table: Any) -> None:
    aside = path.with_suffix(".partial")
    pq.write_table(table, aside)
    os.replace(aside, path)
