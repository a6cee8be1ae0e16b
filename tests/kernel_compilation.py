"""Compiles the kernels for a GPU on a machine that has none: what Triton's interpreter lets pass.

    .venv/bin/python tests/kernel_compilation.py          # first configurations, some seconds
    .venv/bin/python tests/kernel_compilation.py --all    # every configuration, two minutes

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

from mixing.kernels import log_linear_mix_triton, mix_lm_head_triton, mixture_statistics_triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
NUM_MEMBERS, VOCAB, WIDTH = 4, 151_936, 4096


class Hopper:
    """As much of a driver as compiling asks for."""

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


def main() -> None:
    _compile_only()
    every = sys.argv[1:] == ["--all"]
    columns, ones = list(range(NUM_MEMBERS)), [1.0] * NUM_MEMBERS
    caps = [30.0] + [0.0] * (NUM_MEMBERS - 1)
    with torch.device("meta"):
        for rows in (1, 256):
            weights = torch.empty(rows, NUM_MEMBERS)
            tokens = torch.empty(rows, dtype=torch.int64)
            logits = [torch.empty(rows, VOCAB, dtype=torch.bfloat16) for _ in columns]
            hidden = [torch.empty(rows, WIDTH, dtype=torch.bfloat16) for _ in columns]
            heads = [torch.empty(VOCAB, WIDTH, dtype=torch.bfloat16) for _ in columns]
            jobs: list[tuple[Any, str, tuple[Any, ...]]] = [
                (
                    mix_lm_head_triton,
                    "mix_lm_head_triton",
                    (hidden, heads, weights, columns, VOCAB, ones),
                )
            ]
            if rows == 1:
                jobs += [
                    (
                        log_linear_mix_triton,
                        "log_linear_mix_triton",
                        (logits, weights, columns, VOCAB, caps, ones),
                    ),
                    (
                        mixture_statistics_triton,
                        "mixture_statistics_triton",
                        (logits, weights, tokens, columns, caps, ones),
                    ),
                ]
            for module, name, arguments in jobs:
                configs = module.TUNER.configs
                for config in configs if every else configs[:1]:
                    module.TUNER.configs = (config,)
                    print(f"{rows} rows", dict(config), end=" ")
                    getattr(module, name)(*arguments)


if __name__ == "__main__":
    main()
