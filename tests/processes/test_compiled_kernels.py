"""All configurations of all kernels, compiled for all targets; minutes the first time.

`tests/support/kernels/compilation.py` prints the lines of
tests/bench/results/kernels_compiled_202611.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.engine


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_configuration_compiles_without_spilling_and_loads_wide(target: str) -> None:
    script = ROOT / "tests" / "support" / "kernels" / "compilation.py"
    done = subprocess.run(
        [sys.executable, script, "--configurations", f"--target={target}", "bfloat16"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if f"| {target} |" in line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({row[0] for row in rows}) == 5
    assert not [row for row in rows if row[5] != "0"], "spilled"
    # A wave of 64 lanes leaves each 4 elements of a tile's row.
    least = 64 if target == "gfx942" else 128
    narrow = [row for row in rows if int(row[6]) < least and not row[1].endswith("parts")]
    assert not narrow
