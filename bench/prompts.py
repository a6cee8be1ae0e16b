"""`prefmix bench prompts`: one model with K prompts, in one engine and from outside.

Every request has a head for each policy, which that policy alone reads before the prompt. Beside
one policy alone, which reads the longest head, the engine mixes K policies that read their own
heads, and K that all read the longest one: what differs is the cost of the heads beyond their
tokens. Outside, a client sends K requests a token and mixes their log-probabilities, as people do
without a mixture.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefmix.bench.contestants.job import Job, make_job
from prefmix.bench.contestants.models import add_model_flags, prepare_models
from prefmix.bench.contestants.settings import (
    ONE_POLICY,
    ONE_PROMPT,
    OUTSIDE,
    PROMPTS,
    prompt_settings,
)
from prefmix.bench.contestants.worker import Worker
from prefmix.bench.engine import Rounds, started
from prefmix.bench.engine_flags import (
    add_clock_flag,
    add_engine_flags,
    add_round_flags,
    common_settings,
    model_name,
)
from prefmix.bench.report import Report, Spread

ROWS = {
    ONE_POLICY: ONE_POLICY,
    PROMPTS: PROMPTS,
    ONE_PROMPT: PROMPTS,
    OUTSIDE: OUTSIDE,
}
"""Row of the table -> the contestant that it is measured with."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix bench prompts`."""
    add = parser.add_argument
    add("--policies", type=int, default=3, metavar="K", help="default 3")
    add("--batch", type=int, nargs="+", default=[1, 4, 16], help="default 1 4 16")
    add(
        "--head-tokens",
        type=int,
        nargs="+",
        default=[24, 240],
        help="of the longest head; the others have an equal share fewer; default 24 240",
    )
    add("--without-outside", action="store_true", help="leave the requests outside out")
    add_clock_flag(parser, but="not on a GPU")
    add("--top-logprobs", type=int, default=20, help="asked of requests outside; default 20")
    add_round_flags(parser)
    add_engine_flags(parser)
    add_model_flags(parser, size="134m")


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Measures and prints; returns the exit code."""
    clock = "processor time; " if args.clock == "cpu" else ""
    heading = (
        f"{model_name(args)}, {args.dtype}, K = {args.policies}; {args.prompt_tokens} prompt "
        f"tokens, {args.tokens} drawn; {clock}median (lowest-highest) of {args.rounds} rounds"
    )
    num_steps = len(args.batch) * len(args.head_tokens)
    report = Report(heading, table, line=dict, num_left=3, num_steps=num_steps)
    with report, tempfile.TemporaryDirectory(prefix="prefmix-bench-") as folder:
        models = prepare_models(args, Path(folder), num_policies=1)
        settings = prompt_settings(
            models,
            num_policies=args.policies,
            common=common_settings(args, passthrough),
            top_logprobs=args.top_logprobs,
        )
        if args.without_outside:
            del settings[OUTSIDE]
        with started(settings) as (workers, _):
            for head_tokens in args.head_tokens:
                for batch in args.batch:
                    report.begin(f"heads of {head_tokens}, batch {batch}")
                    report.add(_measure(args, workers, head_tokens=head_tokens, batch=batch))
    return 0


def _measure(
    args: argparse.Namespace, workers: Mapping[str, Worker], *, head_tokens: int, batch: int
) -> list[dict[str, Any]]:
    """The rows of one length of heads and one batch; all of a round get the same work."""
    rows = [name for name, contestant in ROWS.items() if contestant in workers]
    times = {name: Rounds() for name in rows}
    for round_index in range(args.rounds + 1):
        first, whole = (
            make_job(
                batch=batch,
                num_policies=args.policies,
                prompt_tokens=args.prompt_tokens,
                tokens=args.tokens,
                seed=2 * round_index + offset,
            ).with_heads(head_tokens, seed=2 * round_index + offset)
            for offset in (0, 1)
        )
        for name in rows:
            worker = workers[ROWS[name]]
            first_s = worker.seconds(_of_row(name, first.only_first_token()), clock=args.clock)
            whole_s = worker.seconds(_of_row(name, whole), clock=args.clock)
            if round_index:  # the first round warms up
                times[name].first_s.append(first_s)
                times[name].whole_s.append(whole_s)
        rows = rows[1:] + rows[:1]
    return [
        {
            "bench": "prompts",
            "contestant": name,
            "num_policies": args.policies,
            "head_tokens": head_tokens,
            "batch": batch,
            "tokens_per_s": Spread.of(batch * args.tokens / s for s in each.whole_s).to_dict(),
            "first_token_ms": Spread.of(1e3 * s for s in each.first_s).to_dict(),
            "token_ms": Spread.of(
                1e3 * (whole - first) / max(args.tokens - 1, 1)
                for first, whole in zip(each.first_s, each.whole_s, strict=True)
            ).to_dict(),
            "of_one_policy": Spread.of_ratios(times[ONE_POLICY].whole_s, each.whole_s).to_dict(),
            "models": model_name(args),
            "dtype": args.dtype,
            "prompt_tokens": args.prompt_tokens,
            "tokens": args.tokens,
            "rounds": args.rounds,
            "clock": args.clock,
        }
        for name, each in times.items()
    ]


def _of_row(name: str, job: Job) -> Job:
    return job.with_longest_head() if name == ONE_PROMPT else job


def table(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells, heading first."""
    heading = ["heads", "batch", "contestant", "tokens/s", "first ms", "ms/token", "of one policy"]
    rows = [
        [
            str(one["head_tokens"]),
            str(one["batch"]),
            one["contestant"],
            f"{one['tokens_per_s']['median']:.1f}",
            f"{one['first_token_ms']['median']:.1f}",
            f"{one['token_ms']['median']:.2f}",
            f"{Spread(**one['of_one_policy']):.3f}",
        ]
        for one in found
    ]
    return [heading, *rows]
