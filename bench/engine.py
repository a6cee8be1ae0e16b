"""`prefmix bench engine`: output speed of all ways to answer from K policies, in one run."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefmix.bench.contestants.job import Job, make_job
from prefmix.bench.contestants.models import Models, add_model_flags, prepare_models
from prefmix.bench.contestants.settings import (
    AVERAGE,
    FULL,
    HALF,
    MULTI_LORA,
    ONE_BY_ONE,
    ONE_POLICY,
    PARAMETERS,
    SEPARATE,
    TRANSFORMERS,
    TRUNK,
    contestant_settings,
)
from prefmix.bench.contestants.worker import Worker
from prefmix.bench.engine_flags import (
    add_clock_flag,
    add_engine_flags,
    add_round_flags,
    common_settings,
    model_name,
)
from prefmix.bench.report import Report, Spread, progress
from prefmix.server.config.errors import CommandError

CONTESTANTS = {
    "full": FULL,
    "trunk": TRUNK,
    "parameters": PARAMETERS,
    "half": HALF,
    "separate": SEPARATE,
    "transformers": TRANSFORMERS,
    "one-by-one": ONE_BY_ONE,
    "average": AVERAGE,
    "multi-lora": MULTI_LORA,
}
"""Words of --contestants; one policy served alone always takes part."""

BY_CHOICE = ("one-by-one", "half")
"""Contestants that take part only if they are named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix bench engine`."""
    add = parser.add_argument
    add("--policies", type=int, nargs="+", default=[3], metavar="K", help="default 3")
    add("--batch", type=int, nargs="+", default=[1, 4, 16, 64], help="default 1 4 16 64")
    add(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        default=[word for word in CONTESTANTS if word not in BY_CHOICE],
        metavar="NAME",
        help=f"beside one policy alone: {', '.join(CONTESTANTS)}; default all that can be built "
        "but one-by-one, the transformers loop without batches, which is slow, and half, a trunk "
        "of which every second request mixes parameters",
    )
    add("--vary-lengths", action="store_true", help="requests draw from 1/4 to 7/4 of --tokens")
    add_clock_flag(
        parser, but="not for separate engines, which have processes of their own, nor on a GPU"
    )
    add("--top-logprobs", type=int, default=20, help="asked of separate engines; default 20")
    add_round_flags(parser)
    add_engine_flags(parser)
    add_model_flags(parser, size="134m")


@dataclass(slots=True)
class Rounds:
    """One contestant's times at one batch size, one value per round."""

    first_s: list[float] = field(default_factory=list)
    """Seconds until every request has its first token."""
    whole_s: list[float] = field(default_factory=list)
    """Seconds until every request has all its tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One row of the table."""

    contestant: str
    num_policies: int
    batch: int
    num_threads: int
    start_s: float
    tokens_per_s: Spread
    first_token_ms: Spread
    token_ms: Spread
    """Milliseconds between two tokens of a request."""
    of_one_policy: Spread
    """The speed over that of one policy served alone, round by round."""
    of_full: Spread | None
    """The speed over that of full checkpoints, round by round."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: value.to_dict() if isinstance(value, Spread) else value
            for name, value in values.items()
        }


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Measures and prints; returns the exit code."""
    if args.clock == "cpu" and "separate" in args.contestants:
        raise CommandError(
            "--clock cpu leaves out what separate engines compute in processes of their own; name "
            "--contestants without separate"
        )
    report = Report(
        _heading(args),
        table,
        line=lambda one: _line(args, one),
        num_left=3,
        num_steps=len(args.policies) * len(args.batch),
    )
    with report, tempfile.TemporaryDirectory(prefix="prefmix-bench-") as folder:
        progress("making the models")
        models = prepare_models(args, Path(folder), num_policies=max(args.policies))
        for num_policies in args.policies:
            settings = _chosen(args, models, num_policies, passthrough)
            with started(settings) as (workers, abouts):
                for batch in args.batch:
                    report.begin(f"{num_policies} policies, batch {batch}")
                    times = measure_rounds(args, workers, num_policies=num_policies, batch=batch)
                    report.add(
                        measurements_of(args, times, abouts, num_policies=num_policies, batch=batch)
                    )
    return 0


def _chosen(
    args: argparse.Namespace, models: Models, num_policies: int, passthrough: Sequence[str]
) -> dict[str, dict[str, Any]]:
    common = common_settings(args, passthrough)
    everyone = contestant_settings(models, num_policies=num_policies, common=common)
    wanted = [ONE_POLICY, *(CONTESTANTS[word] for word in args.contestants)]
    for name in wanted:
        if name not in everyone:
            progress(f"no {name}: the models given do not allow it")
    chosen = {name: everyone[name] for name in wanted if name in everyone}
    if SEPARATE in chosen:
        chosen[SEPARATE]["top_logprobs"] = args.top_logprobs
    return chosen


@contextmanager
def started(
    settings: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[dict[str, Worker], dict[str, dict[str, Any]]]]:
    """Starts the contestants one after another; ends all of them on exit.

    Yields: the workers, and their reports on themselves, by name.
    """
    workers, abouts = dict[str, Worker](), dict[str, dict[str, Any]]()
    with ExitStack() as stack:
        for name, one in settings.items():
            progress(f"starting {name}")
            workers[name] = Worker(one)
            stack.callback(workers[name].close)
            abouts[name] = workers[name].wait_started()
        yield workers, abouts


def measure_rounds(
    args: argparse.Namespace, workers: Mapping[str, Worker], *, num_policies: int, batch: int
) -> dict[str, Rounds]:
    """Lets the contestants take turns; all contestants of a round get the same work."""
    times = {name: Rounds() for name in workers}
    for round_index in range(args.rounds + 1):
        first, whole = (
            _job(args, num_policies=num_policies, batch=batch, seed=2 * round_index + offset)
            for offset in (0, 1)
        )
        for name, worker in workers.items():
            first_s = worker.seconds(first.only_first_token(), clock=args.clock)
            whole_s = worker.seconds(whole, clock=args.clock)
            if round_index:  # the first round warms up
                times[name].first_s.append(first_s)
                times[name].whole_s.append(whole_s)
    return times


def _job(args: argparse.Namespace, *, num_policies: int, batch: int, seed: int) -> Job:
    return make_job(
        batch=batch,
        num_policies=num_policies,
        prompt_tokens=args.prompt_tokens,
        tokens=args.tokens,
        seed=seed,
        vary_lengths=args.vary_lengths,
    )


def measurements_of(
    args: argparse.Namespace,
    times: Mapping[str, Rounds],
    abouts: Mapping[str, Mapping[str, Any]],
    *,
    num_policies: int,
    batch: int,
) -> list[Measurement]:
    """Figures of all contestants at one number of policies and one batch size."""
    job = _job(args, num_policies=num_policies, batch=batch, seed=0)
    steps = max(max(job.lengths) - 1, 1)
    one_policy, full = times[ONE_POLICY], times.get(FULL)
    return [
        Measurement(
            contestant=name,
            num_policies=num_policies,
            batch=batch,
            num_threads=abouts[name]["num_threads"],
            start_s=round(abouts[name]["start_s"], 2),
            tokens_per_s=Spread.of(job.num_tokens / whole for whole in rounds.whole_s),
            first_token_ms=Spread.of(1e3 * first for first in rounds.first_s),
            token_ms=Spread.of(
                1e3 * (whole - first) / steps
                for first, whole in zip(rounds.first_s, rounds.whole_s, strict=True)
            ),
            of_one_policy=Spread.of_ratios(one_policy.whole_s, rounds.whole_s),
            of_full=None if full is None else Spread.of_ratios(full.whole_s, rounds.whole_s),
        )
        for name, rounds in times.items()
    ]


def table(measurements: Sequence[Measurement]) -> list[list[str]]:
    """The cells, heading first; "x K" is the fair figure for an engine of K equal policies."""
    heading = ["K", "batch", "contestant", "tokens/s", "first ms", "ms/token"]
    heading += ["of one policy", "x K", "of full checkpoints"]
    rows = [
        [
            str(one.num_policies),
            str(one.batch),
            one.contestant,
            f"{one.tokens_per_s.median:.1f}",
            f"{one.first_token_ms.median:.1f}",
            f"{one.token_ms.median:.2f}",
            f"{one.of_one_policy:.3f}",
            f"{one.num_policies * one.of_one_policy.median:.3f}",
            "-" if one.of_full is None else f"{one.of_full:.3f}",
        ]
        for one in measurements
    ]
    return [heading, *rows]


def _heading(args: argparse.Namespace) -> str:
    lengths = "1/4 to 7/4 of " if args.vary_lengths else ""
    clock = "processor time; " if args.clock == "cpu" else ""
    return (
        f"{model_name(args)}, {args.dtype}; {args.prompt_tokens} prompt tokens, {lengths}"
        f"{args.tokens} drawn; {clock}median (lowest-highest) of {args.rounds} rounds"
    )


def _line(args: argparse.Namespace, one: Measurement) -> dict[str, Any]:
    return {
        "bench": "engine",
        **one.to_dict(),
        "models": model_name(args),
        "dtype": args.dtype,
        "prompt_tokens": args.prompt_tokens,
        "tokens": args.tokens,
        "vary_lengths": args.vary_lengths,
        "rounds": args.rounds,
        "clock": args.clock,
    }
