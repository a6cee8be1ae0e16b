"""A step of full checkpoints on a GPU, without one: pieces, products and launches.

tests/support/no_device/full_pass.py traces it in a process of its own, as
tests/unit/mixing/models/test_gpu_pass.py does for a shared trunk.
"""

from __future__ import annotations

from typing import Any

import pytest

from support.no_device.script import Scripts

M = 3


@pytest.fixture(scope="module")
def traced(no_device: Scripts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return no_device.answer_of("full_pass", tmp_path_factory.mktemp("traced"), str(M))


def test_each_member_has_the_pieces_and_products_of_a_model_alone(traced: dict[str, Any]) -> None:
    assert (traced["v2"], traced["graphs"]) == (True, "FULL_AND_PIECEWISE")
    assert len(traced["members"]) == M
    for member in traced["members"]:
        layers = member["layers"]
        assert member["pieces_of_attention"] == layers
        assert member["pieces"] == 2 * layers + 1
        assert member["empty_pieces"] == 0
        assert member["products"] == layers * 4  # qkv, o, gate_up, down


@pytest.mark.parametrize("step", ["logits", "measured"])
def test_logits_are_read_once(traced: dict[str, Any], step: str) -> None:
    """Behind a product a policy one pass mixes, keeps what the check reads and, in a measured step,
    sums the statistics, for which nothing is multiplied again."""
    assert traced["plain_heads"] == M
    launches = {"broken_rows": 1, "logits_pass": 1, "mm": M}
    if step == "measured":
        launches["mixture_statistics"] = 1
        assert {name: traced[step].get(name) for name in launches} == launches
    else:
        assert traced[step] == launches
