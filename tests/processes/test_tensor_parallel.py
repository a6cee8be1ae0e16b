"""Two tensor-parallel ranks on a CPU draw from the mixture, in both layouts, or refuse it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.checkpoints.tiny_faults import without
from support.engines import AdaptedBase, spec_of_folders
from support.exactness import TOLERANCE_NATS

LACKED = ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.k_proj.weight")
"""Parameters of which each rank has some inputs, or some outputs."""


@pytest.fixture(scope="module")
def found_on_two_ranks(
    policies: list[Path], adapted: AdaptedBase, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The worst errors of each layout, and a refusal. Runs a process, since ranks are bound to a
    core each."""
    served = {
        "full checkpoints": (spec_of_folders(policies), policies),
        "shared trunk": (adapted.spec(), adapted.merged),
    }
    mixtures = [
        {"spec": spec.to_dict(), "folders": list(map(str, folders))}
        for spec, folders in served.values()
    ]
    broken = without(tmp_path_factory.mktemp("lacking") / "broken", policies[1], LACKED)
    lacking = spec_of_folders([policies[0], broken])
    mixtures.append({"spec": lacking.to_dict(), "is_refused": True})
    script = Path(__file__).parents[1] / "support" / "tensor_parallel_check.py"
    command = [sys.executable, str(script), json.dumps(mixtures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip((*served, "lacking"), found, strict=True))


@pytest.mark.parametrize("layout", ["full checkpoints", "shared trunk"])
def test_two_tensor_parallel_ranks_are_exact(
    found_on_two_ranks: dict[str, dict[str, Any]], layout: str
) -> None:
    errors = found_on_two_ranks[layout]
    ways = ["worst error", "one product"] if layout == "full checkpoints" else ["worst error"]
    for way in ways:
        assert errors[way] < TOLERANCE_NATS


def test_two_tensor_parallel_ranks_refuse_files_that_lack_parts(
    found_on_two_ranks: dict[str, dict[str, Any]],
) -> None:
    sentences = found_on_two_ranks["lacking"]["refusal"]
    assert "policy 'broken': the files of" in sentences
    assert f"lack {', '.join(LACKED)}, so" in sentences
