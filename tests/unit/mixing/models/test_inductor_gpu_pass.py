"""A GPU's pass, compiled by vLLM's passes and Inductor for an H200 that is not there.

tests/support/no_device/inductor_pass.py compiles a pass in a process of its own.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from support.no_device.script import Scripts

UPDATE = "torch.ops.prefmix.scaled_update.default"


@pytest.fixture(scope="module")
def passes(
    no_device: Scripts, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """By layout: a trunk's pass, and a full checkpoint's."""
    return {
        layout: no_device.answer_of("inductor_pass", tmp_path_factory.mktemp(layout), layout)
        for layout in ("trunk", "full")
    }


def test_every_piece_compiles_and_spills_nothing(passes: dict[str, dict[str, Any]]) -> None:
    for found in passes.values():
        assert len(found["launches"]) == found["layers"] + 1  # before, between and after attention
        assert found["kernels"]
        assert not [kernel for kernel in found["kernels"] if kernel["spilled"]]


def test_a_layer_of_a_trunk_launches_one_more_a_linear_than_a_policy_alone(
    passes: dict[str, dict[str, Any]],
) -> None:
    """Norms, activations and positions of all policies are the same launches as of one, and no row
    is copied on its way."""
    layers = {layout: Counter(found["launches"][1]) for layout, found in passes.items()}
    assert layers["full"]["extern_kernels.mm"] == 4  # qkv, o, gate_up, down
    assert layers["trunk"] - layers["full"] == {UPDATE: 4}
    assert layers["full"] - layers["trunk"] == {}
    assert layers["full"].total() == 8
