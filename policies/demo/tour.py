"""Shows what mixture weights do: serves the demo policies, asks them, measures, prints a table.

    make demo        (or: python -m prefmix.policies.demo.tour)

Starts `prefmix serve` on a free loopback port, sends the same prompts under several weights
through the official OpenAI client, scores every answer with the demo's rewards, stops the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, variance
from types import FrameType
from typing import IO, Any, NoReturn

from openai import AsyncOpenAI, OpenAIError

from prefmix.policies.demo import EVALUATION_PROMPTS, REWARDS

CONFIG = Path(__file__).with_name("serve.yaml")
MODEL = "demo"
READY_TIMEOUT_S = 240
STOP_TIMEOUT_S = 20
RESPONSES_PER_PROMPT = 4
MAX_TOKENS = 160
MAX_IN_FLIGHT = 16
"""Requests, of RESPONSES_PER_PROMPT sequences each: what the demo's server runs at once."""
EXAMPLE_PROMPT = "Review the Park Hotel."
EXAMPLE_SEED = 1
NUM_EXAMPLES = 16
OBJECTIVES = tuple(REWARDS)


class TourError(Exception):
    """The tour cannot go on; the message is all there is to say."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stop:
    """One row of the table: a name and how a request asks for its weights."""

    name: str
    model: str = MODEL
    body: Mapping[str, Any] = field(default_factory=dict)
    """Fields beyond OpenAI's own."""


def _corner(name: str) -> Stop:
    return Stop(name=name, body={"preference_weights": {name: 1}})


STOPS = (
    _corner("reference"),
    *(_corner(name) for name in OBJECTIVES),
    Stop(name="uniform", body={"preference_weights": dict.fromkeys(OBJECTIVES, 1)}),
    Stop(name="short-and-kind", body={"preference_profile": "short-and-kind"}),
    Stop(name="glowing-letter", model=f"{MODEL}@glowing-letter"),
)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came back for one row."""

    weights: Mapping[str, float]
    """The weights the server says it used."""
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


class Progress:
    """One line that counts on a terminal; elsewhere it is printed once, when done."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._begun = time.monotonic()
        self._live = sys.stdout.isatty()

    def update(self, detail: str = "") -> None:
        """Rewrites the line on a terminal."""
        if self._live:
            self._write(f"{detail}  {time.monotonic() - self._begun:3.0f} s", end="")

    def done(self, detail: str = "") -> None:
        """Ends the line."""
        self._write(f"{detail}  {time.monotonic() - self._begun:3.0f} s", end="\n")

    def _write(self, detail: str, *, end: str) -> None:
        back = "\r" if self._live else ""
        print(f"{back}{self._text:<52}{detail:>26}", end=end, flush=True)


def main() -> int:
    """Runs the tour; returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with tempfile.TemporaryFile("w+") as log, serving(log) as url:
            asyncio.run(_tour(url))
    except KeyboardInterrupt:
        print("\ndemo: stopped", file=sys.stderr)
        return 130
    except TourError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    return 0


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


# --- the server ------------------------------------------------------------------------------


def prefmix_command() -> Path:
    """The command beside this Python. Raises: TourError if it is not installed."""
    command = Path(sys.executable).with_name("prefmix")
    if not command.exists():
        raise TourError(f"{command} does not exist; run 'make setup'")
    return command


@contextlib.contextmanager
def serving(
    log: IO[str], *flags: str | Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Serves the demo policies; yields the URL once they answer, stops the server at the end.

    Args:
      log: takes what the server prints.
      flags: of `prefmix serve`, beside the port.
      environment: of the server; None is this process's own.
    Raises: TourError if it does not start, or if a request fails inside.
    """
    port = _free_port()
    process = subprocess.Popen(
        [prefmix_command(), "serve", CONFIG, "--port", str(port), *flags],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        # Ctrl-C is for the tour, which then stops the server in its own time.
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url, log)
        yield url
    except OpenAIError as error:
        raise TourError(f"a request failed: {error}{_last_lines(log)}") from None
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: IO[str]) -> None:
    progress = Progress(f"Starting prefmix serve on {url.removeprefix('http://')}")
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not _answers(f"{url}/health"):
        if process.poll() is not None:
            raise TourError(f"the server ended with code {process.returncode}{_last_lines(log)}")
        if time.monotonic() > deadline:
            raise TourError(f"the server was not ready in {READY_TIMEOUT_S} s{_last_lines(log)}")
        progress.update()
        time.sleep(0.2)
    progress.done("ready")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _last_lines(log: IO[str]) -> str:
    log.seek(0)
    lines = [line.rstrip() for line in log if line.strip()][-6:]
    return ":\n" + textwrap.indent("\n".join(lines), "  ") if lines else " and said nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server; by force, with the engine it started, if it does not go."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# --- the requests ----------------------------------------------------------------------------


async def _tour(url: str) -> None:
    # The key is not looked at: this server was started without one.
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        print()
        await _stream(client)
        print()
        answers = await _ask_everything(client)
    print()
    print(_table(answers))
    print()
    print(_examples(answers))
    print()
    print(textwrap.fill(_conclusion(answers), _width()))


async def _stream(client: AsyncOpenAI) -> None:
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
        # A word is complete, and may be placed on this line or the next, when a space follows it.
        while " " in word.lstrip():
            first, word = word.lstrip().split(" ", 1)
            column = _place(first, column)
            word = " " + word
    _place(word.strip(), column)
    print()


def _place(word: str, column: int) -> int:
    """Prints a word behind column `column`, wrapped and indented by 2; returns the new column."""
    if column and column + 1 + len(word) > _width():
        print()
        column = 0
    lead = " " if column else "  "
    print(f"{lead}{word}", end="", flush=True)
    return column + len(lead) + len(word)


async def _ask_everything(client: AsyncOpenAI) -> dict[Stop, Answers]:
    """Sends every prompt under every row's weights; all of them share the engine's batches."""
    total = len(STOPS) * len(EVALUATION_PROMPTS) * RESPONSES_PER_PROMPT
    progress = Progress(
        f"Asking {len(EVALUATION_PROMPTS)} prompts under {len(STOPS)} weightings at once"
    )
    texts: dict[Stop, list[str]] = {stop: [] for stop in STOPS}
    in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def ask(stop: Stop, prompt: str, seed: int) -> None:
        async with in_flight:
            texts[stop] += await _ask(client, stop, prompt, seed=seed)
        progress.update(f"{sum(map(len, texts.values())):,} of {total:,}")

    try:
        async with asyncio.TaskGroup() as group:
            for seed, prompt in enumerate(EVALUATION_PROMPTS):
                for stop in STOPS:
                    group.create_task(ask(stop, prompt, seed))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    progress.done(f"{total:,} answers")
    return {
        stop: Answers(
            weights=await _weights_used(client, stop),
            texts=texts[stop],
            examples=await _ask(client, stop, EXAMPLE_PROMPT, seed=EXAMPLE_SEED, n=NUM_EXAMPLES),
        )
        for stop in STOPS
    }


async def _ask(
    client: AsyncOpenAI, stop: Stop, prompt: str, *, seed: int, n: int = RESPONSES_PER_PROMPT
) -> list[str]:
    completion = await client.chat.completions.create(
        model=stop.model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=MAX_TOKENS,
        temperature=1,
        seed=seed,
        n=n,
        extra_body=dict(stop.body),
    )
    return [choice.message.content or "" for choice in completion.choices]


async def _weights_used(client: AsyncOpenAI, stop: Stop) -> dict[str, float]:
    """The weights of a row, from the header that every answer carries."""
    answer = await client.chat.completions.with_raw_response.create(
        model=stop.model,
        messages=[{"role": "user", "content": EXAMPLE_PROMPT}],
        max_tokens=1,
        extra_body=dict(stop.body),
    )
    header = answer.headers["x-prefmix-weights"]
    return {name: float(weight) for name, weight in (item.split("=") for item in header.split(","))}


# --- what is printed -------------------------------------------------------------------------


def _width() -> int:
    return max(60, min(100, shutil.get_terminal_size((90, 24)).columns - 1))


def _table(answers: Mapping[Stop, Answers]) -> str:
    """Weights, mean rewards and length, one line a row; * marks the best of each objective."""
    members = list(next(iter(answers.values())).weights)
    best = _best(answers)
    num_texts = len(next(iter(answers.values())).texts)
    lines = [
        f"{'':<16}{'weights':^{5 * len(members)}}  {f'mean reward of {num_texts} answers':^30}",
        f"{'':<16}{''.join(f'{name[:3]:>5}' for name in members)}  "
        f"{''.join(f'{name:>10}' for name in OBJECTIVES)}{'words':>8}",
    ]
    lines.append("-" * len(lines[-1]))
    for stop, answer in answers.items():
        weights = "".join(f"{answer.weights[name]:>5.2g}" for name in members)
        rewards = "".join(
            f"{value:>+9.2f}{'*' if best[name] is stop else ' '}"
            for name, value in answer.mean_rewards().items()
        )
        lines.append(f"{stop.name:<16}{weights}  {rewards}{answer.mean_num_words():>8.0f}")
    return "\n".join(line.rstrip() for line in lines)


def _best(answers: Mapping[Stop, Answers]) -> dict[str, Stop]:
    """Objective -> the row with the highest mean reward."""
    means = {stop: answer.mean_rewards() for stop, answer in answers.items()}
    return {name: max(means, key=lambda stop: means[stop][name]) for name in OBJECTIVES}


def _examples(answers: Mapping[Stop, Answers]) -> str:
    """Each row's answer to one prompt, in two columns."""
    indent = " " * 18
    texts = [
        textwrap.fill(
            " ".join(answer.typical_example().split()),
            _width(),
            initial_indent=f"  {stop.name:<16}",
            subsequent_indent=indent,
        )
        for stop, answer in answers.items()
    ]
    return "\n".join([f'"{EXAMPLE_PROMPT}", the most typical of {NUM_EXAMPLES} answers:', *texts])


def _conclusion(answers: Mapping[Stop, Answers]) -> str:
    """What the table shows, said only where it does."""
    best = _best(answers)
    sentences = []
    if all(best[name].name == name for name in OBJECTIVES):
        sentences.append("Each policy alone is the best at its own objective (*).")
    reference = next(answer for stop, answer in answers.items() if stop.name == "reference")
    better = [
        stop.name
        for stop, answer in answers.items()
        if all(_clearly_higher(answer, reference, name) for name in OBJECTIVES)
    ]
    if better:
        sentences.append(
            f"Clearly above the reference policy in every objective: {', '.join(better)}."
        )
    sentences.append(
        "Between the rows nothing was trained or loaded: one engine served all of them, and only "
        "the weights in the requests differ."
    )
    return " ".join(sentences)


def _clearly_higher(answers: Answers, others: Answers, objective: str) -> bool:
    """Whether the mean reward is higher by more than two standard errors of the difference."""
    rewards, baseline = (
        [REWARDS[objective](text) for text in texts] for texts in (answers.texts, others.texts)
    )
    error = math.sqrt(variance(rewards) / len(rewards) + variance(baseline) / len(baseline))
    return fmean(rewards) - fmean(baseline) > 2 * error


if __name__ == "__main__":
    sys.exit(main())
