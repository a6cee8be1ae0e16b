"""The dtype that a CPU without bfloat16 instructions gets by default."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.launch import cpu_dtype
from prefmix.server.launch.cpu_dtype import REASON_ATTRIBUTE, choose_dtype

pytestmark = pytest.mark.usefixtures("vllm")


def chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, native: bool, given: str, **config: object
) -> Namespace:
    monkeypatch.setattr(cpu_dtype, "has_bfloat16", lambda: native)
    (tmp_path / "config.json").write_text(json.dumps(config))
    args = Namespace(dtype=given)
    choose_dtype(args, MixtureSpec(policies=(Policy(name="a", model=str(tmp_path)),)))
    return args


def test_float32_without_instructions_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = chosen(tmp_path, monkeypatch, native=False, given="auto")
    assert args.dtype == "float32"
    assert "no bfloat16 instructions" in getattr(args, REASON_ATTRIBUTE)


@pytest.mark.parametrize(
    ("native", "given", "config"),
    [
        (True, "auto", {}),
        (False, "bfloat16", {}),
        (False, "auto", {"quantization_config": {"quant_method": "compressed-tensors"}}),
    ],
    ids=["native", "given", "quantised"],
)
def test_otherwise_the_dtype_stays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    native: bool,
    given: str,
    config: dict[str, object],
) -> None:
    args = chosen(tmp_path, monkeypatch, native=native, given=given, **config)
    assert args == Namespace(dtype=given)


def test_a_cpu_of_which_torch_uses_avx2_alone_has_none() -> None:
    program = "from prefmix.server.launch.cpu_dtype import has_bfloat16; print(has_bfloat16())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"ATEN_CPU_CAPABILITY": "avx2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
