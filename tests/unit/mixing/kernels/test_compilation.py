"""Kernels compiled for a GPU that is not there: no registers are spilled, and loads are wide.

tests/processes/test_compiled_kernels.py compiles all configurations for all targets.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
KERNELS = {
    "broken_rows",
    "logits_pass",
    "mix_lm_head",
    "mixture_statistics",
    "scaled_update",
}

CASES = r"bfloat16, (V 128256(, (mix|measure|parts))?|V 50257 of 50304, mix and measure|\d+ rows)$"


def test_kernels_of_an_h100_spill_nothing_and_read_128_bits_at_a_time(
    tmp_path: Path,
) -> None:
    """One vocabulary has whole pieces of memory, one ends anywhere."""
    # The interpreter accepts more than the compiler, which needs a process of its own here.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = ROOT / "tests" / "support" / "kernels" / "compilation.py"
    done = subprocess.run(
        [sys.executable, script, CASES],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if "sm_90" in line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {row[0] for row in rows} == KERNELS
    for kernel, case, config, _, _, spilled, widest in rows:
        assert spilled == "0", (kernel, case, config)
        if not case.endswith("parts"):  # of which there are any number
            assert int(widest) == 128, (kernel, case, config)
    assert sum(row[0] == "mix_lm_head" for row in rows) == 2, "a few rows and many"
    launched = [(kernel, case) for kernel, case, *_ in rows]
    assert len(launched) == len(set(launched)), "one compiled kernel for every set of members"
