"""Cost of room for slots: an engine with adapters and slots beside one without slots, in one run.

  python tests/bench/bench_slots.py [--slots 4] [--rounds 5]

Three random adapters of a base of 134M parameters are served in one process each, with one thread;
the engine with slots has one adapter more, in one of them. Requests mix logits or parameters of
the three adapters; "with the slot" gives the fourth the weight of the third. Processor time is
compared, so that other work on the machine counts less. Printed is the time with slots over that
without: above 1, slots cost time.
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

BATCHES = {1: 32, 8: 24, 64: 8}
"""Requests at once -> tokens of each answer."""
NUM_POLICIES = 3
MAX_RANK = 16
_KV_BYTES_PER_MEMBER = 2**29
"""Room for the largest batch, with slots and without."""


def make_models(folder: Path) -> None:
    """Writes a base and one adapter more than are served at the start."""
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
    tokenizer = build_tokenizer(vocab_size=config.vocab_size)
    base = save_model(folder / "base", config, seed=0, dtype=torch.bfloat16, tokenizer=tokenizer)
    for index in range(NUM_POLICIES + 1):
        save_adapter(folder / f"p{index}", base, rank=LORA_RANK, seed=index)


def serve(folder: Path, num_slots: int) -> None:
    """Answers lines "batch tokens mixing with_slot" with processor seconds."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no result
    from vllm import LLM, SamplingParams

    from prefmix.mixing import wire
    from prefmix.mixing.slots import commands
    from prefmix.mixing.spec import MixtureSpec, Policy, hf_overrides

    policies = tuple(
        Policy(name=f"p{index}", model=str(folder / f"p{index}")) for index in range(NUM_POLICIES)
    )
    spec = MixtureSpec(
        policies=policies,
        base=str(folder / "base"),
        adapter_slots=num_slots,
        max_adapter_rank=MAX_RANK if num_slots else 0,
    )
    llm = LLM(
        model=str(folder / "base"),
        hf_overrides=hf_overrides(spec),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=64,
        kv_cache_memory_bytes=_KV_BYTES_PER_MEMBER * (NUM_POLICIES + num_slots),
        enable_prefix_caching=False,
    )
    if num_slots:
        core = llm.llm_engine.engine_core.engine_core
        commands.run(core, "read", ["late", str(folder / f"p{NUM_POLICIES}")])
        while not commands.run(core, "outcome", [])["done"]:
            time.sleep(0.02)
        found = commands.run(core, "put", [0, "late"])
        assert found["failure"] is None, found

    def run(batch: int, num_tokens: int, mixing: Any, with_slot: bool) -> float:
        weights = [1.0 / NUM_POLICIES] * NUM_POLICIES + [0.0] * num_slots
        if with_slot and num_slots:
            weights[NUM_POLICIES - 1 : NUM_POLICIES + 1] = [0.0, weights[0]]
        params = SamplingParams(
            max_tokens=num_tokens,
            ignore_eos=True,
            temperature=1.0,
            seed=1,
            extra_args=wire.to_extra_args(weights, mixing),
        )
        prompts: Any = [
            {"prompt_token_ids": [(7 * i + j) % 900 + 10 for j in range(16)]} for i in range(batch)
        ]
        start = time.process_time()
        llm.generate(prompts, params, use_tqdm=False)
        return time.process_time() - start

    run(2, 4, "logits", False)
    print("ready", file=results, flush=True)
    for line in sys.stdin:
        batch, num_tokens, mixing, with_slot = line.split()
        seconds = run(int(batch), int(num_tokens), mixing, with_slot == "True")
        print(seconds, file=results, flush=True)


class Engine:
    """One engine, in a process of its own."""

    def __init__(self, folder: Path, num_slots: int) -> None:
        own = {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", folder, "--slots", str(num_slots)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **own, "VLLM_LOGGING_LEVEL": "ERROR"},
        )

    def wait_ready(self) -> None:
        """Waits until the engine can answer."""
        if self._line() != "ready":
            raise SystemExit("an engine did not start; try `prefmix bench engine`")

    def seconds(self, *asked: object) -> float:
        """Processor time of one batch."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, asked)) + "\n")
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
    parser.add_argument("--slots", type=int, default=4, help="of the engine with; default 4")
    parser.add_argument("--rounds", type=int, default=5, help="of each batch; default 5")
    parser.add_argument("--batch", type=int, nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve, args.slots)
        return
    with tempfile.TemporaryDirectory(prefix="prefmix-bench-") as name:
        make_models(Path(name))
        without, has_slots = both = [Engine(Path(name), slots) for slots in (0, args.slots)]
        for each in both:
            each.wait_ready()
        for mixing in ("logits", "parameters"):
            for batch in args.batch:
                for with_slot in (False, True):
                    ratios = []
                    for number in range(args.rounds):
                        order = both if number % 2 else both[::-1]  # neither always comes first
                        asked = (batch, BATCHES[batch], mixing, with_slot)
                        took = {each: each.seconds(*asked) for each in order}
                        ratios.append(took[has_slots] / took[without])
                    spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
                    who = "with the slot" if with_slot else "without it"
                    print(
                        f"{mixing}, batch {batch}, {who}: {median(ratios):.3f} {spread}", flush=True
                    )
        for each in both:
            each.close()


if __name__ == "__main__":
    main()
