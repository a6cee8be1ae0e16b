"""What a kernel's configuration is chosen by; and that kernels compile at all."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from mixing.kernels import tuning
from mixing.kernels.tuning import Config, Tuner

ROOT = Path(__file__).resolve().parents[3]
CUDA = torch.device("cuda")
SLOW, FAST = {"BLOCK": 1}, {"BLOCK": 2}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Every configuration that was timed, in order; of the two, FAST is faster."""
    seen: list[Config] = []

    def milliseconds(run: object, config: Config) -> float:
        seen.append(config)
        return 1.0 / config["BLOCK"]

    monkeypatch.setattr(tuning, "_milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    return seen


def test_takes_the_fastest_and_measures_each_kind_of_input_once(measured: list[Config]) -> None:
    tuner, ran = Tuner(SLOW, FAST), list[Config]()
    for key in ("a", "a", "b"):
        tuner.launch(ran.append, key=key, device=CUDA)
    assert ran == [FAST, FAST, FAST]
    assert measured == [SLOW, FAST, SLOW, FAST]


def test_measures_nothing_while_a_graph_is_captured(
    measured: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner, ran = Tuner(SLOW, FAST), list[Config]()
    tuner.launch(ran.append, key="warm", device=CUDA)
    measured.clear()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    tuner.launch(ran.append, key="warm", device=CUDA)
    tuner.launch(ran.append, key="cold", device=CUDA)
    assert ran == [FAST, FAST, SLOW]
    assert not measured
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    tuner.launch(ran.append, key="cold", device=CUDA)
    assert ran[-1] == FAST


def test_measures_nothing_without_a_gpu(measured: list[Config]) -> None:
    ran = list[Config]()
    Tuner(SLOW, FAST).launch(ran.append, key="a", device=torch.device("cpu"))
    assert (ran, measured) == ([SLOW], [])


def test_kernels_compile_for_a_gpu() -> None:
    """The interpreter accepts what the compiler does not. In a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "tests/kernel_compilation.py"],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    for kernel in ("log_linear_mix", "mixture_statistics_tile", "mixture_statistics_row"):
        assert f"_{kernel}_kernel REG:" in run.stdout
    assert run.stdout.count("_mix_lm_head_kernel REG:") == 2  # a few rows and many


def test_kernels_doors_import_no_triton() -> None:
    script = (
        "import sys, mixing.kernels.mix_lm_head, mixing.kernels.mixture_statistics, torch\n"
        "from mixing.kernels.log_linear_mix import log_linear_mix\n"
        "log_linear_mix(torch.zeros(2, 1, 8), torch.ones(2, 1))\n"
        "print(*sorted({'vllm', 'triton'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr
