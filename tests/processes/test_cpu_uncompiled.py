"""Functions that torch cannot compile on a CPU run uncompiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import torch
from prefmix.mixing.workarounds.cpu_uncompiled import run_uncompiled_on_errors


def attempt(whole):
    def ranks(x, values):
        return (x >= values).sum(-1)

    torch._dynamo.reset()
    x = torch.arange(6.0).reshape(2, 3)
    try:
        return torch.compile(ranks, backend="inductor", fullgraph=whole)(x, x[:, 1:2]).tolist()
    except torch._dynamo.exc.TorchDynamoException as error:
        assert "/no/compiler" in str(error)
        return "failed"


before = attempt(whole=False)
run_uncompiled_on_errors()
print([before, attempt(whole=False), attempt(whole=True)])
"""


def test_a_function_runs_without_a_compiler_and_a_whole_model_does_not(tmp_path: Path) -> None:
    """If the first attempt succeeds one day, the workaround can go."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout == "['failed', [2, 2], 'failed']\n", run.stderr
