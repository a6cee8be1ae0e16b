"""A step of a shared trunk on a GPU, without one: what would be launched, and in how many graphs.

tests/support/no_device/gpu_pass.py traces it in a process of its own, with H200s that vLLM believes
in and tensors without memory.
"""

from __future__ import annotations

from typing import Any

import pytest

from support.no_device.script import Scripts

K = 3


@pytest.fixture(scope="module")
def traced(no_device: Scripts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three adapters and a reference."""
    return no_device.answer_of("gpu_pass", tmp_path_factory.mktemp("traced"), str(K), "reference")


def test_the_engine_is_a_gpus(traced: dict[str, Any]) -> None:
    assert (traced["v2"], traced["mode"]) == (True, "VLLM_COMPILE")
    assert traced["graphs"] == "FULL_AND_PIECEWISE"


def test_the_compiled_pass_has_one_policys_pieces(traced: dict[str, Any]) -> None:
    """A piece before and behind each attention; every piece is a CUDA graph at each size."""
    layers = traced["layers"]
    assert traced["pieces_of_attention"] == layers
    assert traced["pieces"] == 2 * layers + 1
    assert traced["empty_pieces"] == 0


def test_attention_is_called_once_a_layer_for_all_members(traced: dict[str, Any]) -> None:
    """Members whose caches cannot be one have a call each, as all had before."""
    attention = traced["attention"]
    assert attention["calls"] == [1, 1]
    assert attention["calls_apart"] == [K + 1, K + 1]
    assert attention["lists"] == 1
    launches = {"add": 2, "clamp": 1, "copy_": 2, "lt": 1, "where": 1}
    assert attention["laid_out"] == launches, "of a step, whatever the number of layers"


def test_steps_that_leave_members_out_find_graphs_of_pieces(traced: dict[str, Any]) -> None:
    """prefmix.mixing.batch.pieces_v2 leaves the number of tokens a request out for them."""
    assert traced["graphs_of_steps"] == ["FULL", "PIECEWISE"]


def test_graphs_have_room_for_the_requests_of_all_members(traced: dict[str, Any]) -> None:
    """FlashAttention keeps four numbers a request; past its largest graph it plans anew."""
    attention = traced["attention"]
    assert attention["room"] > 4 * attention["most_requests"]
    assert attention["largest_graph"] == (K + 1) * attention["largest_graph_of_one"]


def test_a_layer_multiplies_twice_where_one_policy_multiplies_once(traced: dict[str, Any]) -> None:
    """Whatever the number of adapters: every lora_A is a part of the layer's own matrix."""
    assert traced["products"] == traced["layers"] * 4 * 2  # qkv, o, gate_up, down
    assert traced["updates"] == traced["layers"] * 4, "products that scale and add, in one launch"


def test_slots_add_no_launch_and_change_in_place(traced: dict[str, Any]) -> None:
    """Their factors are parts of the layers' matrices, which graphs find where they were; only a
    slot with a KV cache is a member that runs."""
    slots = traced["slots"]
    for name in ("pieces", "empty_pieces", "products", "concatenations"):
        assert slots[name] == traced[name]
    assert slots["members"] == K + 1
    assert slots["caches"] == (K + 1) * traced["layers"]
    assert slots["in_place"] is True
    assert slots["apart"] == []
    assert slots["layers_with_room"] == 4 * traced["layers"]
    assert len(set(slots["bytes"])) == 1
    assert slots["bytes"][0] > 0


def test_the_largest_pass_is_compiled(traced: dict[str, Any]) -> None:
    """Its inputs are the rows of all policies."""
    rows = traced["rows"]
    assert rows["compiled"] == K * rows["step"]
    assert rows["warmed_up"] == rows["step"], "vLLM runs no larger step, not even without graphs"
    assert rows["shared"]
    assert rows["cut_alike"]


def test_a_step_lays_out_the_rows_that_it_needs_in_few_launches(traced: dict[str, Any]) -> None:
    """One copy from the host, then what the engine has about requests and tokens; whatever the
    number of layers, members and requests. A graph has nothing beside the compiled pass."""
    needed = traced["attention"]["needed"]
    launches = {"copy_": 1, "index_select": 7, "add_": 1, "add": 1, "lt": 1, "where": 1}
    assert needed["laid_out"] == dict(sorted(launches.items()))
    stays = {"index_select": 7, "add_": 1, "add": 1, "lt": 1, "where": 1}
    assert needed["stays"] == dict(sorted(stays.items())), "the next token of the same requests"
    padding = {"fill_": 3}
    assert needed["padded"] == dict(sorted({**launches, **padding}.items()))
    assert needed["graph"] == {}
    assert needed["spread"] == {"copy_": 1, "index_put_": 1, "zero_": 1}


def test_where_all_rows_run_six_launches_lie_around_the_compiled_pass(
    traced: dict[str, Any],
) -> None:
    """The inputs of all members, the scales of their rows, those of the first member's, hidden
    states and weights: whatever the number of members."""
    around = {"cat": 2, "copy_": 4, "new_zeros": 2, "zeros": 3}
    assert traced["around"] == around, "zeros: inputs of the trace; new ones: of the first pass"


def test_all_members_read_tokens_of_several_positions(traced: dict[str, Any]) -> None:
    assert traced["inputs"] == {"ids": [8 * (K + 1)], "positions": [3, 8 * (K + 1)]}


def test_hidden_states_become_checked_logits_in_few_launches(traced: dict[str, Any]) -> None:
    """The LM head, before it the mixing, which reads the weights where they lie and rounds to the
    model's dtype, and behind it the check."""
    assert traced["logits"] == {"broken_rows": 1, "log_linear_mix": 1, "mm": 1}


def test_a_head_that_is_more_than_a_product_runs_for_the_policies_of_the_step(
    traced: dict[str, Any],
) -> None:
    """As one with a soft-cap: policies that no request of the step weighs have no logits."""
    assert traced["logits_of_one"]["policies"] == 1


def test_all_reduce_is_not_fused_under_tensor_parallelism(traced: dict[str, Any]) -> None:
    """vLLM's kernel for that, its default on an H200, has room for the tokens of one policy."""
    assert traced["fused_all_reduce"] == {"alone": True, "trunk": False}
