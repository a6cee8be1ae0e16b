"""The tour's questions: one row per weighting, and the answers to all prompts under each row."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from openai import AsyncOpenAI

from prefmix.policies.demo import EVALUATION_PROMPTS, REWARDS
from prefmix.policies.demo.tour.terminal import ProgressLine, line_width

MODEL = "demo"
RESPONSES_PER_PROMPT = 4
MAX_TOKENS = 160
MAX_IN_FLIGHT = 16
"""Requests in flight, of RESPONSES_PER_PROMPT sequences each; the server runs as many at once."""
EXAMPLE_PROMPT = "Review the Park Hotel."
EXAMPLE_SEED = 1
NUM_EXAMPLES = 16
OBJECTIVES = tuple(REWARDS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One row of the table: a name, and the fields with which a request asks for its weights."""

    name: str
    model: str
    body: Mapping[str, Any] = field(default_factory=dict)
    """Fields beyond OpenAI's own."""


def _row(name: str, model: str = MODEL, **fields: Any) -> Row:
    return Row(name=name, model=model, body={f"preference_{k}": v for k, v in fields.items()})


def _corners(model: str) -> tuple[Row, ...]:
    return tuple(_row(name, model, weights={name: 1}) for name in OBJECTIVES)


ROWS = (
    _row("reference", weights={"reference": 1}),
    *_corners(MODEL),
    _row("uniform", weights=dict.fromkeys(OBJECTIVES, 1)),
    _row("short-and-kind", profile="short-and-kind"),
    _row("glowing-letter", f"{MODEL}@glowing-letter"),
)
"""The table of the trained policies."""

NEGATIVE_PROMPT = "Find fault with it."
PROMPT_ROWS = (
    _row("no prompt", "prompts", weights={"concise": 0}),
    *_corners("prompts"),
    _row("uniform", "prompts", weights=dict.fromkeys(OBJECTIVES, 1 / len(OBJECTIVES))),
    _row(
        "negative prompt",
        "prompts",
        weights={"positive": -1},
        prompts={"positive": NEGATIVE_PROMPT},
    ),
)
"""The table of one model with a prompt for each policy; without one it takes the rest of 1."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers of one row."""

    weights: Mapping[str, float]
    """The weights that the server reports to have used."""
    texts: Sequence[str]
    examples: Sequence[str]
    """Answers to one prompt that all rows share."""

    def mean_rewards(self) -> dict[str, float]:
        """Objective -> mean reward of the texts."""
        return {name: fmean(map(reward, self.texts)) for name, reward in REWARDS.items()}

    def mean_num_words(self) -> float:
        """Mean length of the texts."""
        return fmean(len(text.split()) for text in self.texts)

    def typical_example(self) -> str:
        """The example whose rewards lie nearest to the means of all texts."""
        means = self.mean_rewards()

        def distance(text: str) -> float:
            return math.dist([REWARDS[name](text) for name in means], list(means.values()))

        return min(self.examples, key=distance)


async def stream_example(client: AsyncOpenAI) -> None:
    """Streams one answer under the default profile: a request that names no weights."""
    print(f'"{EXAMPLE_PROMPT}", streamed under the default profile:')
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": EXAMPLE_PROMPT}],
        max_tokens=MAX_TOKENS,
        seed=EXAMPLE_SEED,
        stream=True,
    )
    column = 0
    word = ""
    async for chunk in stream:
        word += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        # A word is complete once a space follows it; then its place is this line or the next.
        while " " in word.lstrip():
            first, word = word.lstrip().split(" ", 1)
            column = _place(first, column)
            word = " " + word
    _place(word.strip(), column)
    print()


def _place(word: str, column: int) -> int:
    """Prints a word behind column `column`, wrapped and indented by 2; returns the new column."""
    if column and column + 1 + len(word) > line_width():
        print()
        column = 0
    lead = " " if column else "  "
    print(f"{lead}{word}", end="", flush=True)
    return column + len(lead) + len(word)


async def ask_everything(client: AsyncOpenAI, rows: Sequence[Row]) -> dict[Row, Answers]:
    """Sends every prompt under every row's weights; all of them share the engine's batches."""
    total = len(rows) * len(EVALUATION_PROMPTS) * RESPONSES_PER_PROMPT
    progress = ProgressLine(
        f"Asking {len(EVALUATION_PROMPTS)} prompts under {len(rows)} weightings at once"
    )
    texts: dict[Row, list[str]] = {row: [] for row in rows}
    in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def ask(row: Row, prompt: str, seed: int) -> None:
        async with in_flight:
            texts[row] += await _ask(client, row, prompt, seed=seed)
        progress.update(f"{sum(map(len, texts.values())):,} of {total:,}")

    try:
        async with asyncio.TaskGroup() as group:
            for seed, prompt in enumerate(EVALUATION_PROMPTS):
                for row in rows:
                    group.create_task(ask(row, prompt, seed))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    progress.done(f"{total:,} answers")
    return {
        row: Answers(
            weights=await _weights_used(client, row),
            texts=texts[row],
            examples=await _ask(client, row, EXAMPLE_PROMPT, seed=EXAMPLE_SEED, n=NUM_EXAMPLES),
        )
        for row in rows
    }


async def _ask(
    client: AsyncOpenAI, row: Row, prompt: str, *, seed: int, n: int = RESPONSES_PER_PROMPT
) -> list[str]:
    completion = await client.chat.completions.create(
        model=row.model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=MAX_TOKENS,
        temperature=1,
        seed=seed,
        n=n,
        extra_body=dict(row.body),
    )
    return [choice.message.content or "" for choice in completion.choices]


async def _weights_used(client: AsyncOpenAI, row: Row) -> dict[str, float]:
    """The weights of a row, from the header that every answer carries."""
    answer = await client.chat.completions.with_raw_response.create(
        model=row.model,
        messages=[{"role": "user", "content": EXAMPLE_PROMPT}],
        max_tokens=1,
        extra_body=dict(row.body),
    )
    header = answer.headers["x-prefmix-weights"]
    return {name: float(weight) for name, weight in (item.split("=") for item in header.split(","))}
