"""Two tensor-parallel ranks on a CPU draw from the mixture, in both layouts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.engines import AdaptedBase, spec_of_folders
from support.exactness import TOLERANCE_NATS


@pytest.fixture(scope="module")
def errors_on_two_ranks(policies: list[Path], adapted: AdaptedBase) -> dict[str, dict[str, float]]:
    """The worst errors of each layout. Runs a process, since ranks are bound to a core each."""
    served = {
        "full checkpoints": (spec_of_folders(policies), policies),
        "shared trunk": (adapted.spec(), adapted.merged),
    }
    mixtures = [
        {"spec": spec.to_dict(), "folders": list(map(str, folders))}
        for spec, folders in served.values()
    ]
    script = Path(__file__).parents[1] / "support" / "tensor_parallel_check.py"
    command = [sys.executable, str(script), json.dumps(mixtures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(served, found, strict=True))


@pytest.mark.parametrize("layout", ["full checkpoints", "shared trunk"])
def test_two_tensor_parallel_ranks_are_exact(
    errors_on_two_ranks: dict[str, dict[str, float]], layout: str
) -> None:
    errors = errors_on_two_ranks[layout]
    ways = ["worst error", "one product"] if layout == "full checkpoints" else ["worst error"]
    for way in ways:
        assert errors[way] < TOLERANCE_NATS
