"""The exactness tests once more, on vLLM's V2 model runner, which GPUs use by default.

V2 needs Triton kernels; on a CPU they run in Triton's interpreter
(tests/support/kernels/triton_interpreter.py), set up before vLLM is imported: hence a
process of its own. `make test-v2` runs all layouts this way.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.engines import RUNNER


@pytest.mark.skipif(RUNNER == "v2", reason="already on V2")
@pytest.mark.parametrize("layout", ["full checkpoints", "shared trunk"])
def test_exactness_holds_on_the_v2_runner(layout: str) -> None:
    """Each layout has a process, so that two workers share the longest wait of the suite."""
    engine = Path(__file__).parents[1] / "engine"
    tests = [engine / "test_exactness.py", engine / "test_async_scheduling.py"]
    if layout == "shared trunk":
        tests.append(engine / "trunk" / "test_parameter_mixing.py")
    passes(tests, f"{layout.split()[-1]} or parameter_mixing")


@pytest.mark.skipif(RUNNER == "v2", reason="already on V2")
def test_own_prompts_are_exact_on_the_v2_runner() -> None:
    """Both layouts: prefix hits where policies lag, branches within a block, windows, and one call
    of attention for all policies of a trunk."""
    engine = Path(__file__).parents[1] / "engine"
    tests = [engine / "prompts", engine / "trunk" / "test_joined_calls.py"]
    passes(tests, "branch or windows or (growing and lengths0) or joined_calls")


@pytest.mark.skipif(RUNNER == "v2", reason="already on V2")
def test_rows_that_requests_weigh_are_exact_on_the_v2_runner() -> None:
    """A shared trunk in the rows and graphs of a GPU."""
    engine = Path(__file__).parents[1] / "engine"
    passes([engine / "trunk" / "test_needed_rows.py"], "rows")


def passes(tests: Sequence[Path], which: str) -> None:
    """Runs tests on the V2 runner; `which` as pytest's -k."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "engine", "--show-capture=no"]
    done = subprocess.run(
        [*command, "-k", which, *map(str, tests)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PREFMIX_TEST_RUNNER": "v2"},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
