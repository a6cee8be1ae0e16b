"""The engine tests of tests/engine on a CUDA device: V2 model runner, its kernels compiled.

A CPU runs the same tests on V1, and some of them on V2 in Triton's interpreter
(tests/processes/test_runner_v2.py). Each suite has a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ROOT = Path(__file__).parents[2]
SUITES = {
    "mixing": ["test_exactness.py", "test_async_scheduling.py", "test_layouts.py"],
    "trunk": ["trunk/test_trunk.py", "test_adapters.py"],
    "graphs by need": ["trunk/test_needed_rows.py"],
    "parameter mixing": ["trunk/test_parameter_mixing.py"],
    "slots": ["trunk/test_slots.py"],
    "own prompts": ["prompts"],
    "rows": [
        "test_lm_heads.py",
        "test_broken_rows.py",
        "test_skipping.py",
        "test_banned_tokens.py",
    ],
    "statistics": ["test_statistics.py", "start/test_self_check.py"],
}
"""Files and folders of tests/engine by what they are about."""
TIMEOUT_S = 480


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize("suite", SUITES)
def test_the_engine_is_exact_on_the_device(suite: str) -> None:
    paths = [str(ROOT / "tests" / "engine" / name) for name in SUITES[suite]]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "engine", "--disable-warnings"]
    done = subprocess.run(
        [*command, "--show-capture=no", *paths],
        cwd=ROOT,
        env={**os.environ, "PREFMIX_TEST_RUNNER": "v2"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout
