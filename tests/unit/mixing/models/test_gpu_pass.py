"""A step of a shared trunk on a GPU, without one: what would be launched, and in how many graphs.

tests/support/no_device/gpu_pass.py traces it in a process of its own, with H200s that vLLM believes
in and tensors without memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
K = 3


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three adapters and a reference."""
    script = ROOT / "tests" / "support" / "no_device" / "gpu_pass.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path_factory.mktemp("traced"), str(K), "reference"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "tests", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_engine_is_a_gpus(traced: dict[str, Any]) -> None:
    assert (traced["v2"], traced["mode"]) == (True, "VLLM_COMPILE")
    assert traced["graphs"] == "FULL_AND_PIECEWISE"


def test_the_compiled_pass_has_one_policys_pieces(traced: dict[str, Any]) -> None:
    """A piece before and behind each attention; every piece is a CUDA graph at each size."""
    layers = traced["layers"]
    assert traced["pieces_of_attention"] == layers
    assert traced["pieces"] == 2 * layers + 1
    assert traced["empty_pieces"] == 0


def test_a_layer_multiplies_twice_where_one_policy_multiplies_once(traced: dict[str, Any]) -> None:
    """Whatever the number of adapters: every lora_A is a part of the layer's own matrix."""
    assert traced["products"] == traced["layers"] * 4 * 2  # qkv, o, gate_up, down


def test_hidden_states_become_checked_logits_in_few_launches(traced: dict[str, Any]) -> None:
    """The LM head, and beside it the mixing, its rounding, the weights' columns and the check."""
    assert traced["logits"] == {
        "_to_copy": 1,
        "broken_rows": 1,
        "clone": 1,
        "log_linear_mix": 1,
        "mm": 1,
    }


def test_all_reduce_is_not_fused_under_tensor_parallelism(traced: dict[str, Any]) -> None:
    """vLLM's kernel for that, its default on an H200, has room for the tokens of one policy."""
    assert traced["fused_all_reduce"] == {"alone": True, "trunk": False}
