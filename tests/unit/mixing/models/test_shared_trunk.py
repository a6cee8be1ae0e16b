"""Graphs of shared trunks that differ are compiled apart."""

from __future__ import annotations

import importlib
import os
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from prefmix.mixing.batch.step import Step
from prefmix.mixing.models.stack import Stack, StackedInputs
from prefmix.mixing.prompts.member_rows import MemberRows
from prefmix.mixing.spec import MixtureSpec, Policy

pytestmark = pytest.mark.usefixtures("vllm")

POLICIES = tuple(Policy(name=name, model=f"org/{name}") for name in ("a", "b"))
CPU = torch.device("cpu")
BASE = Policy(name="base", model="org/base")


def spec(**settings: Any) -> MixtureSpec:
    return MixtureSpec(policies=POLICIES, base="org/base", **settings)


def adapters(*ranks: int) -> list[Any]:
    layer = "model.layers.0.self_attn.q_proj"
    return [SimpleNamespace(name=f"of{rank}", ranks={layer: rank}) for rank in ranks]


def test_graphs_that_differ_have_keys_of_their_own() -> None:
    """A reference adds rows to the stack, and has no ranks."""
    trunk = importlib.import_module("prefmix.mixing.models.shared_trunk")
    config = importlib.import_module("vllm.config").VllmConfig

    @mock.patch.dict(os.environ)  # vLLM sets variables for its processes
    def key(mixture: MixtureSpec, *ranks: int) -> str:
        added = {"prefmix_trunk": trunk.graph_key(mixture, adapters(*ranks))}
        return str(config(additional_config=added).compute_hash())

    plain, with_reference, other_ranks = (
        key(spec(), 4, 4),
        key(spec(reference=BASE), 4, 4),
        key(spec(), 4, 8),
    )
    assert len({plain, with_reference, other_ranks}) == 3
    assert key(spec(), 4, 4) == plain


def test_routers_of_experts_know_the_padding_among_the_rows_of_all_members() -> None:
    """vLLM marks it among a step's tokens; a graph keeps the marks' address."""
    context = importlib.import_module("vllm.forward_context")
    stack = Stack(
        num_members=3, adapter_members=(0, 1), max_rows=12, takes_any_rows=False, device=CPU
    )
    stack.run([0, 1, 2], [4, 4, 4])
    addresses = set()
    for marks in ([False, False, False, True], [False, True, True, True]):
        step = context.ForwardContext(
            no_compile_layers={},
            attn_metadata={},
            slot_mapping={},
            is_padding=torch.tensor(marks),
        )
        with context.override_forward_context(step), stack.padding():
            inside = context.get_forward_context().is_padding
            assert inside.tolist() == marks * 3
            addresses.add(inside.data_ptr())
    assert len(addresses) == 1


@pytest.mark.parametrize(("has_prompts", "num_positions"), [(False, 1), (False, 3), (True, 1)])
def test_pieces_find_all_members_inputs_where_they_were_captured(
    has_prompts: bool, num_positions: int
) -> None:
    """A CUDA graph of a piece is told no addresses when it is replayed."""
    trunk = importlib.import_module("prefmix.mixing.models.shared_trunk")
    context = importlib.import_module("vllm.forward_context")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def run(input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        seen.append((input_ids, positions))
        return torch.zeros(len(input_ids), 2)

    model: Any = SimpleNamespace(
        takes_any_rows=False,
        step=Step(num_members=2, can_skip=True),
        stack=Stack(
            num_members=2, adapter_members=(0, 1), max_rows=16, takes_any_rows=False, device=CPU
        ),
        inputs=StackedInputs(16),
        trunk=run,
    )
    kept = []
    for num_tokens in (8, 3, 5):
        kept.append(torch.empty(1000 * num_tokens))  # other memory is in use in each step
        ids_T = torch.arange(num_tokens, dtype=torch.int32) + num_tokens
        positions_T = 10 * torch.arange(num_tokens).expand(num_positions, -1).squeeze(0)
        ids_MT, positions_MT = (torch.stack([each, each]) for each in (ids_T, positions_T))
        if has_prompts:
            places_MT = torch.arange(num_tokens).expand(2, -1)
            ids_MT[1] += 7
            model.step.rows = MemberRows(ids_MT, positions_MT, places_MT, places_MT)
        out = torch.empty(num_tokens, 2, 2)
        alone = context.ForwardContext(no_compile_layers={}, attn_metadata={}, slot_mapping={})
        with context.override_forward_context(alone):
            trunk.SharedTrunkMixtureForCausalLM.run_members(
                model, ids_T, positions_T, [out[:, 0], out[:, 1]], None, torch.ones(num_tokens, 2)
            )
        found_ids, found_positions = seen[-1]
        assert torch.equal(found_ids, ids_MT.flatten())
        assert torch.equal(found_positions, torch.cat([*positions_MT], dim=-1))
    for each in zip(*seen, strict=True):
        assert len({tensor.data_ptr() for tensor in each}) == 1


def test_a_step_that_marks_no_padding_is_left_alone() -> None:
    context = importlib.import_module("vllm.forward_context")
    stack = Stack(num_members=2, adapter_members=(0,), max_rows=4, takes_any_rows=False, device=CPU)
    step = context.ForwardContext(no_compile_layers={}, attn_metadata={}, slot_mapping={})
    with context.override_forward_context(step), stack.padding():
        assert context.get_forward_context() is step
