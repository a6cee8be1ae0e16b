"""Compiles the kernels for a GPU without one, to find errors that Triton's interpreter lets pass.

    .venv/bin/python tests/support/kernels/compilation.py          # some seconds
    .venv/bin/python tests/support/kernels/compilation.py --all    # all configurations: two minutes

Prints a line a kernel: registers a thread, bytes spilled, bytes of shared memory. The target is an
H100 or H200 (compute capability 9.0); Triton brings the assembler. Nothing is launched.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from prefmix.mixing.kernels import (
    log_linear_mix_triton,
    mix_lm_head_triton,
    mixture_statistics_triton,
)

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
NUM_MEMBERS, VOCAB, WIDTH = 4, 151_936, 4096


class Hopper:
    """The part of a Triton driver that compilation uses."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _compile_only() -> None:
    run = JITFunction.run

    def compiled(self: Any, *args: object, **options: object) -> object:
        kernel = run(self, *args, **{**options, "warmup": True})
        print(self.fn.__name__, _resources(kernel.asm["cubin"]), flush=True)
        return kernel

    JITFunction.run = compiled
    triton.runtime.driver.set_active(Hopper())


def _resources(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return " ".join(word for word in report.split() if word.startswith(("REG:", "STACK:")))


def _jobs(rows: int) -> list[tuple[Any, str, tuple[object, ...]]]:
    """Module, launcher and arguments of every kernel that depends on the number of rows."""
    columns, ones = list(range(NUM_MEMBERS)), [1.0] * NUM_MEMBERS
    caps = [30.0] + [0.0] * (NUM_MEMBERS - 1)
    weights, tokens = torch.empty(rows, NUM_MEMBERS), torch.empty(rows, dtype=torch.int64)
    logits, hidden, heads = (
        [torch.empty(shape, dtype=torch.bfloat16) for _ in columns]
        for shape in ((rows, VOCAB), (rows, WIDTH), (VOCAB, WIDTH))
    )
    of_heads = (hidden, heads, weights, columns, VOCAB, ones)
    of_mix = (logits, weights, columns, VOCAB, caps, ones)
    of_statistics = (logits, weights, tokens, columns, caps, ones)
    jobs: list[tuple[Any, str, tuple[object, ...]]] = [
        (mix_lm_head_triton, "mix_lm_head_triton", of_heads)
    ]
    if rows == 1:
        jobs.append((log_linear_mix_triton, "log_linear_mix_triton", of_mix))
        jobs.append((mixture_statistics_triton, "mixture_statistics_triton", of_statistics))
    return jobs


def main() -> None:
    _compile_only()
    every = sys.argv[1:] == ["--all"]
    for rows in (1, 256):
        with torch.device("meta"):
            jobs = _jobs(rows)
            for module, launcher, arguments in jobs:
                configs = module.TUNER.configs
                for config in configs if every else configs[:1]:
                    print(f"{rows} rows", dict(config), end=" ")
                    module.TUNER.configs = (config,)
                    getattr(module, launcher)(*arguments)
                module.TUNER.configs = configs


if __name__ == "__main__":
    main()
