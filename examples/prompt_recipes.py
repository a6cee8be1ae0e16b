"""Measures the recipes of docs/prompts.md on the demo's instructed policy.

  prefmix serve policies/demo/prompts.yaml --weight-space affine --port 8000
  python -m examples.prompt_recipes --url http://127.0.0.1:8000

With policies/demo/prompt_and_adapter.yaml served instead, it measures the recipe of that file. The
model without a prompt, `plain`, is the reference of both and takes what the weights leave of 1.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from openai import AsyncOpenAI, OpenAIError

from prefmix.policies.demo import EVALUATION_PROMPTS, REWARDS
from prefmix.policies.demo.reviews.grammar import domain_of, is_grammatical
from prefmix.policies.demo.reviews.prompts import item_of
from prefmix.policies.demo.reviews.styles import notes

RESPONSES_PER_PROMPT = 4
MAX_TOKENS = 160
MAX_IN_FLIGHT = 16
_SCALES = (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One request: its prompt, and the fact that its notes state."""

    prompt: str
    aspect: str
    word: str

    @property
    def notes(self) -> str:
        """The fact as a system message."""
        return notes(((self.aspect, self.word),))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table: its name, and fields of a request by question."""

    name: str
    fields: Callable[[Question], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A table of rows that are asked the same questions."""

    title: str
    rows: Sequence[Row]
    states_fact: bool = field(default=False)
    """True if the table counts answers that repeat the fact of the notes."""


def questions(*, seed: int = 0) -> list[Question]:
    """The demo's held-out prompts, each with a random fact about its item."""
    rng = random.Random(seed)
    found = []
    for prompt in EVALUATION_PROMPTS:
        aspects = domain_of(item_of(prompt)).aspects
        aspect = rng.choice(sorted(aspects))
        word = rng.choice(sum(aspects[aspect], ()))
        found.append(Question(prompt=prompt, aspect=aspect, word=word))
    return found


def _fixed(name: str, **fields: Any) -> Row:
    return Row(name=name, fields=lambda _: fields)


def _guided(scale: int, text: str) -> Row:
    """The model without a prompt has weight `scale`, that with one the rest."""
    return _fixed(
        f"scale {scale}",
        preference_weights={"positive": 1 - scale},
        preference_prompts={"positive": text},
    )


def _informed(scale: int) -> Row:
    """The model with the document has weight `scale`, that without it the rest."""
    return Row(
        name=f"scale {scale}",
        fields=lambda question: {
            "preference_weights": {"positive": scale},
            "preference_prompts": {"positive": question.notes},
        },
    )


def _weighted(name: str, **weights: float) -> Row:
    return _fixed(name, preference_weights=weights)


RECIPES: dict[str, tuple[Recipe, ...]] = {
    "prompts": (
        Recipe(
            title="System prompts by weight",
            rows=(
                _weighted("plain", concise=0),
                *(_weighted(name, **{name: 1}) for name in REWARDS),
                _weighted("positive and polite", positive=1 / 2, polite=1 / 2),
                _weighted("all three", **dict.fromkeys(REWARDS, 1 / 3)),
                _weighted("all three, stronger", **dict.fromkeys(REWARDS, 1)),
            ),
        ),
        Recipe(
            title='Negative prompt "Find fault with it."',
            rows=tuple(_guided(scale, "Find fault with it.") for scale in _SCALES),
        ),
        Recipe(
            title="A document, and the same model without it",
            rows=tuple(_informed(scale) for scale in _SCALES),
            states_fact=True,
        ),
    ),
    "both": (
        Recipe(
            title="A prompt beside an adapter",
            rows=(
                _weighted("plain", concise=0),
                _weighted("adapter polite", polite=1),
                _weighted("prompt concise", concise=1),
                _weighted("both", polite=1 / 2, concise=1 / 2),
                _weighted("both, stronger", polite=1, concise=1),
            ),
        ),
    ),
}
"""Name of a demo mixture -> the recipes that it serves."""


def table(recipe: Recipe, answers: Mapping[str, Sequence[tuple[Question, str]]]) -> str:
    """Mean rewards and lengths by row, aligned; `answers` by name of the row."""
    width = max(len(row.name) for row in recipe.rows)
    heads = [*REWARDS, "words", "grammatical"] + ["says the fact"] * recipe.states_fact
    lines = [f"{'':{width}}" + "".join(f"{head:>{len(head) + 2}}" for head in heads)]
    for row in recipe.rows:
        texts = [text for _, text in answers[row.name]]
        cells = [f"{fmean(map(reward, texts)):+.2f}" for reward in REWARDS.values()]
        cells.append(f"{fmean(len(text.split()) for text in texts):.1f}")
        cells.append(f"{fmean(map(is_grammatical, texts)):.0%}")
        if recipe.states_fact:
            said = [q.aspect in text and q.word in text for q, text in answers[row.name]]
            cells.append(f"{fmean(said):.0%}")
        lines.append(
            f"{row.name:{width}}"
            + "".join(f"{cell:>{len(head) + 2}}" for cell, head in zip(cells, heads, strict=True))
        )
    num_answers = len(answers[recipe.rows[0].name])
    return "\n".join([f"{recipe.title}, {num_answers} answers a row", *lines])


async def ask(client: AsyncOpenAI, model: str, row: Row) -> list[tuple[Question, str]]:
    """All answers of a row."""
    in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def one(seed: int, question: Question) -> list[tuple[Question, str]]:
        async with in_flight:
            answer = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question.prompt}],
                max_tokens=MAX_TOKENS,
                temperature=1,
                seed=seed,
                n=RESPONSES_PER_PROMPT,
                extra_body=dict(row.fields(question)),
            )
        return [(question, choice.message.content or "") for choice in answer.choices]

    answered = await asyncio.gather(*(one(seed, q) for seed, q in enumerate(questions())))
    return [pair for pairs in answered for pair in pairs]


async def _measure(url: str, key: str) -> None:
    async with AsyncOpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=key) as client:
        model = (await client.models.list()).data[0].id
        if model not in RECIPES:
            raise SystemExit(
                f"{url} serves {model!r}; these recipes are for policies/demo/prompts.yaml and "
                "policies/demo/prompt_and_adapter.yaml"
            )
        for recipe in RECIPES[model]:
            answers = {row.name: await ask(client, model, row) for row in recipe.rows}
            print(table(recipe, answers), end="\n\n")


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Measure the recipes of docs/prompts.md.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the running server")
    parser.add_argument("--key", default="none", help="API key, if the server wants one")
    args = parser.parse_args()
    try:
        asyncio.run(_measure(args.url, args.key))
    except OpenAIError as error:
        raise SystemExit(f"{args.url} did not answer: {error}") from None


if __name__ == "__main__":
    main()
