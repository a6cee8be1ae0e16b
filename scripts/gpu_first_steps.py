"""The steps of scripts/gpu_first_run.py: commands, their time limits, and what a CPU runs.

The most telling ones come first: time may run out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command and its bounds."""

    name: str
    """Word of --only."""
    about: str
    command: Sequence[str]
    limit_s: int
    on_cpu: Sequence[str] | None = None
    """The command of a CPU; None if it has none."""
    environment: Sequence[tuple[str, str]] = ()
    counts: str | None = None
    """A pattern whose matches in the output are counted."""


def _pytest(*words: str) -> list[str]:
    return ["-m", "pytest", "-q", "-m", "gpu", "--disable-warnings", "-rfE", *words]


def _bench(what: str, *words: str) -> list[str]:
    return ["-m", "prefmix", "bench", what, *words]


TINY = ("--model-size", "tiny", "--dummy-weights", "--dtype", "float32", "--max-model-len", "128")
ROOM = ("--max-model-len", "1024", "--kv-cache-gib", "4")
"""For three engines beside each other on one GPU."""

STEPS = (
    Step(
        name="device",
        about="the device, its driver and its memory",
        command=["-c", "import subprocess; subprocess.run(['nvidia-smi'], check=True)"],
        limit_s=60,
    ),
    Step(
        name="doctor",
        about="what `prefmix doctor` finds",
        command=["-m", "prefmix", "doctor"],
        on_cpu=["-m", "prefmix", "doctor"],
        limit_s=180,
    ),
    Step(
        name="kernels",
        about="every kernel on the device against float64, its graphs and its waits",
        command=_pytest(
            *(f"tests/gpu/test_{name}_gpu.py" for name in ("kernels", "log_linear_mix")),
            "tests/gpu/test_broken_rows_gpu.py",
        ),
        limit_s=300,
    ),
    Step(
        name="engine",
        about="both layouts in bfloat16 against transformers, with and without graphs",
        command=_pytest("tests/gpu/test_engine_gpu.py", "-k", "full or trunk"),
        limit_s=480,
    ),
    Step(
        name="attention",
        about="heads of several sizes in Triton's attention, and a trunk in FlashInfer's",
        command=_pytest("tests/gpu/test_engine_gpu.py", "-k", "other or apart"),
        limit_s=240,
    ),
    Step(
        name="waits",
        about="steps in which the host waits for the device; the count should be 0",
        command=_pytest("-s", "tests/gpu/test_engine_gpu.py", "-k", "errs and True"),
        environment=[("VLLM_GPU_SYNC_CHECK", "warn")],
        counts=r"called a synchronizing|synchroniz\w+ CUDA operation",
        limit_s=240,
    ),
    *(
        Step(
            name=f"exactness: {suite}",
            about=f"tests of tests/engine on the device, V2 model runner: {suite}",
            command=_pytest("tests/gpu/test_exactness_gpu.py", "-k", suite),
            limit_s=limit_s,
        )
        for suite, limit_s in (
            ("mixing", 300), ("trunk", 240), ("graphs", 150), ("parameter", 180), ("own", 240),
            ("rows", 180), ("statistics", 150), ("slots", 150),
        )
    ),
    Step(
        name="kernel bandwidth",
        about="kernels beside their fallbacks and the bandwidth of a copy",
        command=_bench("kernels", "--rows", "1", "64", "256", "--members", "3", "--rounds", "10"),
        on_cpu=_bench(
            "kernels", "--kernel", "log_linear_mix", "--rows", "1", "--vocab", "32000", "--rounds",
            "3",
        ),
        limit_s=240,
    ),
    *(
        Step(
            name=f"speed, K = {policies}",
            about=f"8B base, {policies} adapters: mixed logits and mixed parameters beside one "
            "policy",
            command=_bench(
                "engine", "--model-size", "8b", "--policies", str(policies),
                "--contestants", "trunk", "parameters", "--batch", "1", "8", "64",
                "--rounds", "3", "--tokens", "128", "--prompt-tokens", "256", *ROOM,
            ),
            on_cpu=_bench(
                "engine", *TINY, "--policies", str(policies), "--contestants", "trunk",
                "--batch", "1", "--rounds", "1", "--tokens", "8", "--", "--enforce-eager",
            ) if policies == 2 else None,
            limit_s=420,
        )
        for policies in (3, 2, 1)
    ),
    Step(
        name="full checkpoints",
        about="1B, three policies: full checkpoints and vLLM's own multi-LoRA beside one policy",
        command=_bench(
            "engine", "--model-size", "1b", "--contestants", "full", "multi-lora", "--batch", "1",
            "8", "64", "--rounds", "3", "--tokens", "128", "--prompt-tokens", "256", *ROOM,
        ),
        limit_s=360,
    ),
    Step(
        name="mixed batch",
        about="8B: equal weights in all rows, different ones, and one policy a request",
        command=_bench("mixed-batch", "--model-size", "8b", "--batch", "64", *ROOM),
        limit_s=240,
    ),
    Step(
        name="memory",
        about="bytes of parameters, and of KV cache for a token",
        command=_bench("memory", "--model-size", "8b", *ROOM),
        limit_s=240,
    ),
    Step(
        name="launches",
        about="kernels, graphs, launches outside them and waits of one step of decoding",
        command=_bench(
            "launches", "--model-size", "8b", "--contestants", "trunk", "parameters", "--batch",
            "1", "64", *ROOM,
        ),
        on_cpu=_bench(
            "launches", *TINY, "--policies", "2", "--contestants", "trunk", "--steps", "4", "--",
            "--enforce-eager",
        ),
        limit_s=300,
    ),
)  # fmt: skip
