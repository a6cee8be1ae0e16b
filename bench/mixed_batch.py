"""`prefmix bench mixed-batch`: equal weights in all rows against different weights in every row.

Two more batches have requests for one policy only: all for the same policy, or the policies in
turn.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from prefmix.bench.contestants.job import Weights, make_job
from prefmix.bench.contestants.models import add_model_flags, prepare_models
from prefmix.bench.contestants.settings import FULL, TRUNK, contestant_settings
from prefmix.bench.contestants.worker import Worker
from prefmix.bench.engine import started
from prefmix.bench.engine_flags import (
    add_engine_flags,
    add_round_flags,
    common_settings,
    model_name,
)
from prefmix.bench.report import Report, Spread

LAYOUTS = (FULL, TRUNK)
KINDS: tuple[Weights, ...] = get_args(Weights)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix bench mixed-batch`."""
    add = parser.add_argument
    add("--policies", type=int, default=3, metavar="K", help="default 3")
    add("--batch", type=int, nargs="+", default=[16], help="default 16")
    add_round_flags(parser)
    add_engine_flags(parser)
    add_model_flags(parser, size="134m")


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Measures and prints; returns the exit code."""
    heading = (
        f"{model_name(args)}, {args.dtype}, K = {args.policies}; {args.prompt_tokens} prompt "
        f"tokens, {args.tokens} drawn; tokens/s with these weights, median (lowest-highest) of "
        f"{args.rounds} rounds"
    )
    report = Report(heading, table, line=dict, num_left=2, num_steps=len(args.batch))
    with report, tempfile.TemporaryDirectory(prefix="prefmix-bench-") as folder:
        models = prepare_models(args, Path(folder), num_policies=args.policies)
        everyone = contestant_settings(
            models, num_policies=args.policies, common=common_settings(args, passthrough)
        )
        settings = {name: everyone[name] for name in LAYOUTS if name in everyone}
        with started(settings) as (workers, _):
            for batch in args.batch:
                report.begin(f"batch {batch}")
                report.add(_measure(args, name, worker, batch) for name, worker in workers.items())
    return 0


def _measure(args: argparse.Namespace, layout: str, worker: Worker, batch: int) -> dict[str, Any]:
    seconds: dict[Weights, list[float]] = {kind: [] for kind in KINDS}
    order = list(KINDS)
    for round_index in range(args.rounds + 1):
        order = order[1:] + order[:1]
        for kind in order:
            job = make_job(
                batch=batch,
                num_policies=args.policies,
                prompt_tokens=args.prompt_tokens,
                tokens=args.tokens,
                seed=round_index,
                weights=kind,
            )
            took = worker.seconds(job)
            if round_index:  # the first round warms up
                seconds[kind].append(took)
    num_tokens = batch * args.tokens

    def over(kind: Weights, baseline: Weights) -> dict[str, float]:
        return Spread.of_ratios(seconds[baseline], seconds[kind]).to_dict()

    return {
        "bench": "mixed-batch",
        "layout": layout,
        "num_policies": args.policies,
        "batch": batch,
        "tokens_per_s": {
            kind: Spread.of(num_tokens / each for each in took).to_dict()
            for kind, took in seconds.items()
        },
        "different_over_same": over("different", "same"),
        "one_each_over_same": over("one policy each", "same"),
        "one_each_over_one": over("one policy each", "one policy"),
        "models": model_name(args),
        "dtype": args.dtype,
        "prompt_tokens": args.prompt_tokens,
        "tokens": args.tokens,
        "rounds": args.rounds,
    }


def table(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells, heading first."""
    heading = ["layout", "batch", "same", "different", "each one", "one"]
    heading += ["different/same", "each one/same", "each one/one"]
    ratios = ("different_over_same", "one_each_over_same", "one_each_over_one")
    rows = [
        [
            one["layout"],
            str(one["batch"]),
            *(f"{one['tokens_per_s'][kind]['median']:.1f}" for kind in KINDS),
            *(f"{Spread(**one[ratio]):.3f}" for ratio in ratios),
        ]
        for one in found
    ]
    return [heading, *rows]
