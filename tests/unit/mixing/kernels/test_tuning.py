"""A kernel's configuration is chosen by measuring."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Hashable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from prefmix.mixing.kernels import tuning
from prefmix.mixing.kernels.tuning import Config, Tuner
from support.kernels.cases import make_case
from support.kernels.head_cases import make_heads

ROOT = Path(__file__).resolve().parents[4]
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


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("name", ["log_linear_mix", "mixture_statistics", "mix_lm_head"])
def test_a_choice_made_for_one_row_does_not_serve_a_batch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"log_linear_mix": "logits_pass"}
    module = importlib.import_module(f"prefmix.mixing.kernels.{files.get(name, name)}_triton")
    of_tuner = "mix_lm_head" if name == "mix_lm_head" else "logits_pass"
    tuned = importlib.import_module(f"prefmix.mixing.kernels.{of_tuner}_triton")
    keys: list[Hashable] = []
    monkeypatch.setattr(tuned.TUNER, "launch", lambda run, *, key, device: keys.append(key))
    for rows in (1, 2, 31, 32, 256):
        case, inputs = make_case(507, rows=rows), make_heads(16, rows=rows)
        logits, ones = case.logits, [1.0] * 3
        arguments = {
            "log_linear_mix": (logits, case.weights_NM, [0, 1, 2], 507, [0.0] * 3, ones),
            "mixture_statistics": (
                *(logits, case.weights_NM, case.tokens_N, [0, 1, 2], [0.0] * 3, ones),
            ),
            "mix_lm_head": (inputs.hidden, inputs.heads, inputs.weights_NM, [0], 130, [1.0]),
        }[name]
        getattr(module, f"{name}_triton")(*arguments)
    one, two, _, _, many = keys
    assert one == two
    assert one != many
    if name != "mix_lm_head":  # it has more kinds of rows
        assert len(set(keys)) == 2


def test_kernels_doors_import_no_triton() -> None:
    script = (
        "import sys, torch\n"
        "import prefmix.mixing.kernels.mix_lm_head, prefmix.mixing.kernels.mixture_statistics\n"
        "import prefmix.mixing.kernels.one_pass\n"
        "from prefmix.mixing.kernels.log_linear_mix import log_linear_mix\n"
        "log_linear_mix(torch.zeros(2, 1, 8), torch.ones(2, 1))\n"
        "print(*sorted({'vllm', 'triton'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr
