"""Output speed of two checkouts of prefmix on the same models, in turn in one run.

  python tests/bench/bench_two_trees.py BEFORE AFTER [--rounds 7] [--layout trunk]

BEFORE and AFTER are folders with an environment each (`.venv`). Both serve three random policies of
134M parameters, adapters or full checkpoints, in one process each with one thread. Their processor
time is compared, so that other work on the machine counts less. Printed is the time after over that
before: above 1 the later checkout is slower.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

BATCHES = {1: 48, 8: 32, 64: 16}
"""Requests at once -> tokens of each answer."""
NUM_POLICIES = 3
_ENGINE = {
    "dtype": "bfloat16",
    "enforce_eager": True,
    "max_model_len": 256,
    "max_num_seqs": 64,
    "kv_cache_memory_bytes": 2**30,
    "enable_prefix_caching": False,
}


def make_models(folder: Path, layout: str) -> None:
    """Writes the random models that both checkouts serve."""
    import torch

    from prefmix.bench.contestants.models import LORA_RANK, SIZES
    from prefmix.bench.contestants.random_models import (
        Shape,
        build_tokenizer,
        save_adapter,
        save_model,
    )

    names = ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocab")
    config = Shape(**dict(zip(names, SIZES["134m"], strict=True))).config()
    settings = {"dtype": torch.bfloat16, "tokenizer": build_tokenizer(vocab_size=config.vocab_size)}
    if layout == "trunk":
        base = save_model(folder / "base", config, seed=0, **settings)
        for index in range(NUM_POLICIES):
            save_adapter(folder / f"p{index}", base, rank=LORA_RANK, seed=index)
    else:
        for index in range(NUM_POLICIES):
            save_model(folder / f"p{index}", config, seed=index, **settings)


def serve(folder: Path, layout: str) -> None:
    """Answers lines "batch tokens" with processor seconds; runs in each checkout's environment."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no result
    from vllm import SamplingParams

    from prefmix import Mixture

    policies = {f"p{index}": str(folder / f"p{index}") for index in range(NUM_POLICIES)}
    models: dict[str, Any] = {"policies": policies}
    if layout == "trunk":
        models = {"base": str(folder / "base"), "adapters": policies}
    mixture = Mixture(**models, **_ENGINE)

    def run(batch: int, num_tokens: int) -> float:
        params = SamplingParams(max_tokens=num_tokens, ignore_eos=True, temperature=1.0, seed=1)
        prompts = [
            {"prompt_token_ids": [(7 * i + j) % 900 + 10 for j in range(16)]} for i in range(batch)
        ]
        start = time.process_time()
        mixture.generate(prompts, params)
        return time.process_time() - start

    run(2, 4)
    print("ready", file=results, flush=True)
    for line in sys.stdin:
        batch, num_tokens = map(int, line.split())
        print(run(batch, num_tokens), file=results, flush=True)


class Checkout:
    """One checkout's engine, in a process of its own."""

    def __init__(self, tree: Path, folder: Path, layout: str) -> None:
        own = {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        self._process = subprocess.Popen(
            [tree / ".venv/bin/python", __file__, "--serve", folder, "--layout", layout],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=tree,
            env={**os.environ, **own, "VLLM_LOGGING_LEVEL": "ERROR"},
        )
        if self._line() != "ready":
            raise SystemExit(f"{tree} did not start; try its own `prefmix bench engine`")

    def seconds(self, batch: int, num_tokens: int) -> float:
        """Processor time of one batch."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{batch} {num_tokens}\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("trees", nargs="*", type=Path, metavar="TREE", help="before, then after")
    parser.add_argument("--rounds", type=int, default=7, help="of each batch; default 7")
    parser.add_argument("--layout", choices=("trunk", "full"), default="trunk")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve, args.layout)
        return
    if len(args.trees) != 2:
        parser.error("two checkouts are compared: BEFORE AFTER")
    with tempfile.TemporaryDirectory(prefix="prefmix-bench-") as name:
        make_models(Path(name), args.layout)
        both = [Checkout(tree.resolve(), Path(name), args.layout) for tree in args.trees]
        for batch, num_tokens in BATCHES.items():
            ratios = []
            for number in range(args.rounds):
                order = both if number % 2 else both[::-1]  # neither always comes first
                took = {each: each.seconds(batch, num_tokens) for each in order}
                ratios.append(took[both[1]] / took[both[0]])
            spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
            print(f"{args.layout}, batch {batch}: {median(ratios):.3f} {spread}", flush=True)
        for each in both:
            each.close()


if __name__ == "__main__":
    main()
