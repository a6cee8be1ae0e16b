"""Compiles the kernels for GPUs that are not there, and reads what the assembler made of them.

    .venv/bin/python tests/support/kernels/compilation.py [PATTERN]    # sm_90, some seconds
    .venv/bin/python tests/support/kernels/compilation.py --all        # minutes: a table
    ... --configurations --target=sm_80                                # all of one target
    ... --loops                                    # and the machine instructions of each loop

Triton brings the assemblers of all targets. Arguments are specialised as in a real launch, from
tensors without memory. Nothing is launched. tests/bench/results/kernels_compiled_202611.md keeps
the table.

Shapes: K members of a launch, V vocabulary, N rows.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from prefmix.mixing.kernels import (
    broken_rows_triton,
    logits_pass_triton,
    mix_lm_head_triton,
    mixture_statistics_triton,
    scaled_update_triton,
)
from prefmix.mixing.kernels.logits_pass_triton import Members, pass_over_logits

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
NUM_MEMBERS, WIDTH = 3, 4096
VOCABS = {"V 128256": (128_256, 128_256), "V 50257 of 50304": (50_257, 50_304)}
"""A vocabulary and the stride of its rows, which vLLM pads."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A kernel that was compiled for one target."""

    kernel: str
    case: str
    config: str
    target: str
    registers: int
    spilled: int
    """Bytes a thread, or registers on AMD."""
    widest_load: int
    """Bits of the widest load from memory."""
    asm: dict[str, Any]

    @property
    def row(self) -> str:
        """A line of the table."""
        cells = (self.kernel, self.case, self.config, self.target)
        numbers = (self.registers, self.spilled, self.widest_load)
        return f"| {' | '.join(map(str, (*cells, *numbers)))} |"


class NoDevice:
    """The part of a Triton driver that compilation uses."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return list(TARGETS.values()).index(self._target)  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def _compiling_only(found: list[tuple[str, Any]]) -> Iterator[None]:
    """Within this context a launch only compiles."""
    run = JITFunction.run

    def compiled(self: Any, *args: object, **options: object) -> object:
        kernel = run(self, *args, **{**options, "warmup": True})
        found.append((self.fn.__name__.strip("_").removesuffix("_kernel"), kernel))
        return kernel

    JITFunction.run = compiled
    try:
        yield
    finally:
        JITFunction.run = run


def compile_all(targets: list[str], *, every_config: bool, only: str = "") -> Iterator[Compiled]:
    """Compiles the kernels.

    Args:
      every_config: all configurations; else each kernel's first.
      only: a pattern in the names of cases.
    """
    for target in targets:
        triton.runtime.driver.set_active(NoDevice(TARGETS[target]))
        seen: set[str] = set()
        for case, module, launch in _cases():
            if not re.search(only, case):
                continue
            tuner = getattr(module, "TUNER", None)
            configs = [{}] if tuner is None else list(tuner.configs)
            for config in configs if every_config else configs[:1]:
                found: list[tuple[str, Any]] = []
                if tuner is not None:
                    tuner.configs = (config,)
                with _compiling_only(found):
                    launch()
                if tuner is not None:
                    tuner.configs = configs
                for name, kernel in found:
                    if kernel.hash not in seen:
                        seen.add(kernel.hash)
                        words = "x".join(map(str, config.values()))
                        yield _read(name, case, words, target, kernel.asm)


def _cases() -> Iterator[tuple[str, Any, Callable[[], object]]]:
    """Name, module and launch of typical inputs."""
    members, ones = list(range(NUM_MEMBERS)), [1.0] * NUM_MEMBERS
    no_caps, caps = [0.0] * NUM_MEMBERS, [30.0] * NUM_MEMBERS
    weights, tokens = _meta(8, NUM_MEMBERS, dtype=torch.float32), _meta(8, dtype=torch.int64)
    row = _meta(8, -(-(NUM_MEMBERS * (WIDTH + 2)) // 16) * 16, dtype=torch.bfloat16)
    hidden = [row[:, member * WIDTH : (member + 1) * WIDTH] for member in members]
    for size, (vocab, stride) in VOCABS.items():
        for dtype in (torch.bfloat16, torch.float32):
            name = f"{str(dtype).removeprefix('torch.')}, {size}"
            logits = [_meta(8, stride, dtype=dtype)[:, :vocab] for _ in members]
            for capped, own in (("", no_caps), (", capped", caps)):
                for words, mixes, measures in (
                    ("mix", True, False),
                    ("measure", False, True),
                    ("mix and measure", True, True),
                ):
                    width = vocab if mixes else None
                    yield (
                        f"{name}{capped}, {words}",
                        logits_pass_triton,
                        lambda of=(logits, own, width, measures): _pass(weights, *of),
                    )
            of_figures = (Members.of(logits, members, no_caps, ones, NUM_MEMBERS), weights, tokens)
            yield (f"{name}, parts", mixture_statistics_triton, lambda of=of_figures: _figures(*of))
            for words, tops in (("", None), (", parts", _meta(8, 256, dtype=torch.float32))):
                of_check = (logits[0], hidden, weights, tops)
                yield (
                    f"{name}{words}",
                    broken_rows_triton,
                    lambda of=of_check: broken_rows_triton.broken_rows_triton(*of),
                )
    for num_rows in (8, 64):  # of a layer's q, k and v, with three adapters of rank 16 each
        both = _meta(num_rows, 6144 + NUM_MEMBERS * 48, dtype=torch.bfloat16)
        of_update = (
            *both.tensor_split([6144], dim=1),
            _meta(num_rows, NUM_MEMBERS, dtype=torch.float32),
            _meta(NUM_MEMBERS * 48, 6144, dtype=torch.bfloat16),
        )
        yield (
            f"bfloat16, {num_rows} rows",
            scaled_update_triton,
            lambda of=of_update: scaled_update_triton.scaled_update_triton(*of),
        )
    for num_rows in (1, 64):
        heads = [_meta(128_256, WIDTH, dtype=torch.bfloat16) for _ in members]
        rows = [each[:1].expand(num_rows, -1) for each in hidden]
        rows = [each.as_strided((num_rows, WIDTH), hidden[0].stride()) for each in rows]
        of_head = (
            rows,
            heads,
            _meta(num_rows, NUM_MEMBERS, dtype=torch.float32),
            members,
            128_256,
            ones,
        )
        yield (
            f"bfloat16, {num_rows} rows",
            mix_lm_head_triton,
            lambda of=of_head: mix_lm_head_triton.mix_lm_head_triton(*of),
        )


def _pass(
    weights: Any, logits: list[Any], caps: list[float], width: int | None, measures: bool
) -> None:
    """Launches the pass over all members' logits, then over one's: one kernel serves both."""
    ones, columns = [1.0] * NUM_MEMBERS, list(range(NUM_MEMBERS))
    for some in (slice(None), slice(1, 2)):
        members = Members.of(logits[some], columns[some], caps[some], ones[some], NUM_MEMBERS)
        checks = width is not None
        pass_over_logits(members, weights, vocab_size=width, checks=checks, measures=measures)


def _figures(members: Members, weights: Any, tokens: Any) -> None:
    """Launches the figures of rows of several parts and of one: one kernel serves both."""
    for num_parts in (16, 5, 1):
        sums = _meta(8, 3 + 3 * NUM_MEMBERS, 256, dtype=torch.float32)[:, :, :num_parts]
        mixture_statistics_triton.figures_of_tokens(members, weights, tokens, sums)


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _read(kernel: str, case: str, config: str, target: str, asm: dict[str, Any]) -> Compiled:
    if "amdgcn" in asm:
        text = asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1])
        # Scalar registers are spilled to vector ones, which cost no memory.
        spilled = int(re.search(r"\.vgpr_spill_count:\s*(\d+)", text)[1])
        words = re.findall(r"(?:global|buffer)_load_(?:dword(x\d)?|u?short|\w+)", text)
        widest = max((32 * int(each[1:]) for each in words if each), default=32)
    else:
        usage = usage_of(asm["cubin"])
        registers, spilled = usage["REG"], usage["STACK"]
        widest = max(
            map(_bits, re.findall(r"(?:ld\.global|cp\.async)[^;]*", asm["ptx"])), default=0
        )
    return Compiled(
        kernel=kernel,
        case=case,
        config=config,
        target=target,
        registers=registers,
        spilled=spilled,
        widest_load=widest,
        asm=asm,
    )


def _bits(instruction: str) -> int:
    if instruction.startswith("cp.async"):
        size = re.search(r", (0x[0-9a-f]+|\d+)(?:,|$)", instruction.rstrip())
        return 0 if size is None else 8 * int(size[1], 0)
    vector, width = re.search(r"\.v(\d)", instruction), re.search(r"\.[bufs](\d+)", instruction)
    assert width is not None, instruction
    return int(width[1]) * (int(vector[1]) if vector else 1)


def usage_of(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", report)}


def loops(cubin: bytes) -> list[int]:
    """Number of instructions in each loop of a kernel for NVIDIA's GPUs, longest first."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "nvdisasm"), "-c", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    labels: dict[str, int] = {}
    lengths, count = [], 0
    for line in text.splitlines():
        if label := re.match(r"\s*\.(L_x_\d+):", line):
            labels[label[1]] = count
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/", line):
            count += 1
            target = re.search(r"BRA.*`\(\.(L_x_\d+)\)", line)
            if target and target[1] in labels:
                lengths.append(count - labels[target[1]])
    return sorted(lengths, reverse=True)


def main() -> None:
    flags = [each for each in sys.argv[1:] if each.startswith("--")]
    only = next((each for each in sys.argv[1:] if each not in flags), "")
    every = bool({"--all", "--configurations"} & set(flags))
    targets = list(TARGETS) if "--all" in flags else ["sm_90"]
    targets = [each.partition("=")[2] for each in flags if "=" in each] or targets
    print(f"Triton {triton.__version__}, {NUM_MEMBERS} members\n")
    print("| kernel | case | configuration | target | registers | spilled | widest load |")
    print("|---|---|---|---|---:|---:|---:|")
    for each in compile_all(targets, every_config=every, only=only):
        print(each.row, flush=True)
        if "--loops" in flags and "cubin" in each.asm:
            print(f"  instructions of its loops: {loops(each.asm['cubin'])}")


if __name__ == "__main__":
    main()
