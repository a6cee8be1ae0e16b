"""Shows what mixture weights do: serves the demo policies, asks them, measures, prints a table.

    make demo        (or: python -m prefmix.policies.demo.tour)

The tour starts `prefmix serve` on a free loopback port, sends the same prompts under several
weights through the official OpenAI client, scores every answer with the demo's rewards and stops
the server.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import NoReturn

from openai import AsyncOpenAI

from prefmix.policies.demo.tour.findings import (
    conclusion,
    conclusion_of_prompts,
    examples,
    table,
)
from prefmix.policies.demo.tour.questions import (
    PROMPT_ROWS,
    ROWS,
    Answers,
    Row,
    ask_everything,
    stream_example,
)
from prefmix.policies.demo.tour.server import PROMPTS_CONFIG, TourError, serving
from prefmix.policies.demo.tour.terminal import line_width

PROGRAM = "python -m prefmix.policies.demo.tour"


def main(argv: Sequence[str] = ()) -> int:
    """Runs the tour, which takes no flags but --help; returns the exit code."""
    description = (__doc__ or "").partition("\n")[0]
    argparse.ArgumentParser(PROGRAM, description=description).parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with tempfile.TemporaryFile("w+") as log, serving(log) as url:
            asyncio.run(_trained_policies(url))
        print("\nAnd without any training: one model, with a prompt for each policy.")
        with (
            tempfile.TemporaryFile("w+") as log,
            serving(log, "--weight-space", "affine", config=PROMPTS_CONFIG) as url,
        ):
            asyncio.run(_prompts(url))
    except KeyboardInterrupt:
        print("\ndemo: stopped", file=sys.stderr)
        return 130
    except TourError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    return 0


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


async def _trained_policies(url: str) -> None:
    async with _client(url) as client:
        print()
        await stream_example(client)
        print()
        answers = await ask_everything(client, ROWS)
    _print_findings(answers, conclusion(answers))


async def _prompts(url: str) -> None:
    async with _client(url) as client:
        answers = await ask_everything(client, PROMPT_ROWS)
    _print_findings(answers, conclusion_of_prompts(answers))


def _client(url: str) -> AsyncOpenAI:
    # The client needs some key; this server was started without one and ignores it.
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def _print_findings(answers: Mapping[Row, Answers], sentences: str) -> None:
    for text in (table(answers), examples(answers), textwrap.fill(sentences, line_width())):
        print(f"\n{text}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
