"""The cost of watching the mixture: no watching, a NaN check of each row, the default sample of
steps, every request attributed.

    .venv/bin/python tests/bench/bench_observing.py [--layout full|trunk] [--batch 8] [--rounds 9]

One engine runs the same batch with each of the four, round by round, so that a slow moment of the
machine hits all of them. Prints the median of the rounds' ratios to no watching, then one line of
JSON. The HTTP side (counters, fetching every 5 s) is not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

from prefmix.bench.contestants.models import add_model_flags, prepare_models
from prefmix.mixing import wire
from prefmix.mixing.spec import MixtureSpec, Policy, hf_overrides

WAYS = {
    "off": (0, False, False),
    "rows checked": (0, False, True),
    "every 100th step": (100, False, False),
    "every request": (0, True, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layout", choices=("full", "trunk"), default="full")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="bfloat16")
    add_model_flags(parser, size="134m", needs_files=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        llm = engine(args, Path(folder))
        ratios: dict[str, list[float]] = {way: [] for way in WAYS}
        speeds: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(args.rounds + 1):
            found = {way: tokens_per_second(llm, args, *how) for way, how in WAYS.items()}
            if turn:  # the first turn warms up
                for way, speed in found.items():
                    speeds[way].append(speed)
                    ratios[way].append(speed / found["off"])
    print(f"{'measured':<18}  {'tokens/s':>9}  {'of off':>7}")
    for way in WAYS:
        speed, ratio = statistics.median(speeds[way]), statistics.median(ratios[way])
        print(f"{way:<18}  {speed:>9.1f}  {ratio:>7.3f}")
    record = {
        "bench": "observing",
        "layout": args.layout,
        "batch": args.batch,
        "rounds": args.rounds,
        "ratios": {way: round(statistics.median(values), 4) for way, values in ratios.items()},
        "spread": {way: [round(min(v), 3), round(max(v), 3)] for way, v in ratios.items()},
        "load_average_1min": os.getloadavg()[0],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("prefmix", "torch")},
    }
    print(json.dumps(record))


def engine(args: argparse.Namespace, folder: Path) -> Any:
    from vllm import LLM

    models = prepare_models(args, folder, num_policies=3)
    members = models.adapters if args.layout == "trunk" else models.policies
    spec = MixtureSpec(
        policies=tuple(
            Policy(name=f"p{index}", model=str(path)) for index, path in enumerate(members)
        ),
        base=str(models.base) if args.layout == "trunk" else None,
    )
    return LLM(
        model=spec.checkpoints[0].model,
        hf_overrides=hf_overrides(spec),
        dtype=args.dtype,
        max_model_len=512,
        max_num_seqs=args.batch,
    )


def check_rows(worker: Any, checked: bool) -> None:
    worker.prefmix_check_rows()
    worker.model_runner.model.step.checks_rows = checked


def tokens_per_second(
    llm: Any, args: argparse.Namespace, every: int, attributed: bool, checked: bool
) -> float:
    from vllm import SamplingParams

    llm.collective_rpc("prefmix_start_statistics", args=(every,))
    llm.collective_rpc(check_rows, args=(checked,))
    params = []
    for index in range(args.batch):
        extra = wire.to_extra_args((0.2, 0.3, 0.5))
        if attributed:
            extra[wire.MEASURE_KEY] = f"key{index}"
        params.append(SamplingParams(max_tokens=args.tokens, ignore_eos=True, extra_args=extra))
    prompts = [{"prompt_token_ids": [5 + index] * 8} for index in range(args.batch)]
    begin = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    if attributed:
        for index in range(args.batch):
            llm.collective_rpc("prefmix_take_request", args=(f"key{index}",))
    return args.batch * args.tokens / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
