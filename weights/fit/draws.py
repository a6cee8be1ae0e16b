"""Responses, drawn and scored in parts that are kept on disk, so that a killed job can go on.

A draw is a folder of Parquet parts: `sample-00000.parquet` (tokens, text, log-probability under
the mixture that drew them, figures that the engine measured meanwhile) and, for a member that has
no figures because it had no weight, `score-<member>-00000.parquet`. A part is written aside and
renamed, so that it is whole or missing. A part that exists is never made again. Where parameters
are mixed, which no member has figures of, `shifted-<hash>-00000.parquet` has the scores at weights
nearby.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache as call_once
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.weights.engines.engine import Engine, Figures
from prefmix.weights.engines.member_prompts import MemberPrompts, PromptTokens, Tokens
from prefmix.weights.engines.progress import Progress
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.fit.score_table import ENTROPY, KL, LOGPROB, PROPOSAL
from prefmix.weights.fit.sequence_level.objective import Floats

PART_PROMPTS = 64
"""Prompts a part; a killed job loses at most one part."""

_FORMAT = 2
"""Changes when parts hold other columns than those of an earlier version."""


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """The settings of one draw; equal settings draw equal responses on one machine."""

    weights_M: tuple[float, ...]
    """The weights of the mixture that draws, one per member."""
    num_responses: int
    """Responses a prompt."""
    max_tokens: int
    """Length limit of a response, in tokens."""
    seed: int
    mixing: Mixing = "logits"


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The responses of one draw."""

    table: Any
    """An Arrow table in the form of a score table (prefmix.weights.fit.score_table)."""
    texts: Sequence[str]
    """The text of each row of the table."""
    tokens: Sequence[Sequence[int]]
    """The tokens of each row of the table."""
    shifted_SN: Floats
    """The log-probability of each row at each of the S other weights."""


class Draws:
    """Draws and scores responses with one engine, which starts when a part is missing."""

    def __init__(
        self,
        *,
        spec: MixtureSpec,
        engine: Callable[[], Engine],
        cache: Path,
        members: Sequence[str],
        num_responses: int,
        num_shifts: int = 0,
        progress: Progress,
    ) -> None:
        """Args:
        spec: the mixture.
        engine: makes an engine of `spec`; called once, if a part is missing.
        cache: folder of the draws' folders.
        members: the members that score every response.
        num_responses: responses that all draws together need, at most.
        num_shifts: other weights that score every response, at most.
        progress: where sampling and scoring are shown.
        """
        self._spec, self._cache, self._members = spec, cache, members
        self._engine = call_once(engine)
        self._sampling = progress.stage("sample", num_responses, "responses")
        num_scores = num_responses * (len(members) + num_shifts)
        self._scoring = progress.stage("score", num_scores, "responses")

    def draw(
        self,
        name: str,
        prompts: Sequence[Prompt],
        settings: DrawSettings,
        *,
        title: str,
        shifts: Sequence[Sequence[float]] = (),
        members: Sequence[str] | None = None,
    ) -> Drawn:
        """Draws responses and scores them under every member, or reads the parts that exist.

        Args:
          name: of the draw's folder, from `cache_name`.
          prompts: P prompts.
          settings: weights, number and length of the responses, seed.
          title: the purpose of the draw, shown with its progress.
          shifts: S other weights at which the responses are scored, too, mixed in the same way.
          members: the members whose scores are wanted; None: all.
        """
        folder = self._cache / name
        folder.mkdir(parents=True, exist_ok=True)
        paths = self._sample(folder, prompts, settings, title)
        scoring = self._members if members is None else members
        columns = {member: self._score(folder, paths, member, title) for member in scoring}
        shifted = [
            self._score_shifted(folder, paths, number, weights_M, settings.mixing, title)
            for number, weights_M in enumerate(shifts)
        ]
        whole = pa.concat_tables([pq.read_table(path) for path in paths])
        table = whole.select(["prompt_id", "response_id", "num_tokens", PROPOSAL, ENTROPY])
        for member in self._members:
            table = table.append_column(f"{KL}{member}", whole[f"{KL}{member}"])
        for member, values in columns.items():
            table = table.append_column(f"{LOGPROB}{member}", pa.array(values, type=pa.float64()))
        texts, tokens = whole["text"].to_pylist(), whole["tokens"].to_pylist()
        shifted_SN = np.stack(shifted) if shifted else np.empty((0, len(texts)))
        return Drawn(table=table, texts=texts, tokens=tokens, shifted_SN=shifted_SN)

    def finish(self) -> None:
        """Ends the progress of sampling and scoring; what was not drawn was not needed."""
        self._sampling.finish()
        self._scoring.finish()

    def _sample(
        self, folder: Path, prompts: Sequence[Prompt], settings: DrawSettings, title: str
    ) -> list[Path]:
        """Draws the missing parts; returns the paths of all."""
        paths = []
        with self._sampling.working(title):
            for index, begin in enumerate(range(0, len(prompts), PART_PROMPTS)):
                part = prompts[begin : begin + PART_PROMPTS]
                path = folder / f"sample-{index:05}.parquet"
                is_new = not path.exists()
                if is_new:
                    _write(path, self._sampled(part, settings, offset=begin))
                self._sampling.advance(len(part) * settings.num_responses, is_new=is_new)
                paths.append(path)
        return paths

    def _sampled(self, prompts: Sequence[Prompt], settings: DrawSettings, *, offset: int) -> Any:
        """The sampled responses to the prompts of one part, as an Arrow table."""
        engine, members = self._engine(), self._spec.member_names
        tokenized = engine.tokenize(prompts)
        drawn = engine.sample(
            tokenized,
            settings.weights_M,
            num_responses=settings.num_responses,
            max_tokens=settings.max_tokens,
            mixing=settings.mixing,
            # Seeds of different parts and fits must not overlap.
            seed=(settings.seed * 1_000_003 + offset * settings.num_responses) % 2**31,
        )
        rows = [
            {
                "prompt_id": prompt.id,
                "response_id": index,
                "num_tokens": len(response.tokens),
                PROPOSAL: response.logprob,
                **_prompt_columns(prompt_tokens),
                "tokens": list(response.tokens),
                "text": response.text,
                **_columns(response.figures, members),
            }
            for prompt, prompt_tokens, responses in zip(prompts, tokenized, drawn, strict=True)
            for index, response in enumerate(responses)
        ]
        return pa.Table.from_pylist(rows)

    def _score(self, folder: Path, samples: Sequence[Path], member: str, title: str) -> Floats:
        """The log-probability of every response under one member alone, measured or scored."""
        one_hot = [float(name == member) for name in self._spec.member_names]
        values = []
        with self._scoring.working(f"{title}, {member}" if title else member):
            for index, sample in enumerate(samples):
                measured = pq.read_table(sample, columns=[f"{LOGPROB}{member}"])[0].to_numpy()
                if np.isfinite(measured).all():
                    values.append(measured)
                    self._scoring.advance(len(measured), is_new=False)
                    continue
                path = folder / f"score-{member}-{index:05}.parquet"
                values.append(self._scored(path, sample, one_hot, "logits"))
        return np.concatenate(values)

    def _score_shifted(
        self,
        folder: Path,
        samples: Sequence[Path],
        number: int,
        weights_M: Sequence[float],
        mixing: Mixing,
        title: str,
    ) -> Floats:
        """The log-probability of every response at other weights."""
        with self._scoring.working(f"{title}, weights nearby {number + 1}"):
            return np.concatenate(
                [
                    self._scored(
                        folder / f"shifted-{cache_name(weights_M)}-{index:05}.parquet",
                        sample,
                        weights_M,
                        mixing,
                    )
                    for index, sample in enumerate(samples)
                ]
            )

    def _scored(
        self, path: Path, sample: Path, weights_M: Sequence[float], mixing: Mixing
    ) -> Floats:
        """The scores of one part, made if they are missing."""
        is_new = not path.exists()
        if is_new:
            scores = self._engine().score(list(_pairs(sample)), weights_M, mixing=mixing)
            _write(path, pa.table({"logprob": scores}))
        values: Floats = pq.read_table(path)["logprob"].to_numpy()
        self._scoring.advance(len(values), is_new=is_new)
        return values


def cache_name(decides: Sequence[Any], *, prompts_sha256: str | None = None) -> str:
    """The name of a draw's folder: the hash of all that decides the draw.

    Args:
      decides: JSON-ready.
      prompts_sha256: hash of the policies' own prompts, if they have any.
    """
    decides = decides if prompts_sha256 is None else [*decides, prompts_sha256]
    return hashlib.sha256(json.dumps([_FORMAT, *decides], sort_keys=True).encode()).hexdigest()[:20]


def _columns(figures: Figures | None, members: Sequence[str]) -> dict[str, float]:
    """The figures of a response by column; NaN where nothing was measured."""
    nothing = (math.nan,) * len(members)
    kl_M, logprob_M = (nothing, nothing) if figures is None else (figures.kl_M, figures.logprob_M)
    return {
        ENTROPY: math.nan if figures is None else figures.entropy,
        "log_partition": math.nan if figures is None else figures.log_partition,
        **{f"{KL}{name}": kl for name, kl in zip(members, kl_M, strict=True)},
        **{f"{LOGPROB}{name}": value for name, value in zip(members, logprob_M, strict=True)},
    }


def _prompt_columns(prompt: PromptTokens) -> dict[str, Any]:
    """The tokens of a prompt: one list, or one for each member that reads a prompt of its own."""
    if isinstance(prompt, MemberPrompts):
        return {"prompt_tokens_by_member": [list(tokens) for tokens in prompt.tokens_M]}
    return {"prompt_tokens": list(prompt)}


def _pairs(sample: Path) -> Iterator[tuple[PromptTokens, Tokens]]:
    """The (prompt, response) pairs of one part."""
    prompts = {"prompt_tokens", "prompt_tokens_by_member"} & set(pq.read_schema(sample).names)
    for row in pq.read_table(sample, columns=[*prompts, "tokens"]).to_pylist():
        by_member = row.get("prompt_tokens_by_member")
        prompt: PromptTokens = (
            tuple(row["prompt_tokens"])
            if by_member is None
            else MemberPrompts(tuple(map(tuple, by_member)))
        )
        yield prompt, tuple(row["tokens"])


def _write(path: Path, table: Any) -> None:
    aside = path.with_suffix(".partial")
    pq.write_table(table, aside)
    os.replace(aside, path)
