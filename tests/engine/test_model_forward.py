"""The composite's own part of a step, with members whose outputs are known."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.forward_context import override_forward_context

from prefmix.mixing import wire
from prefmix.mixing.batch.step import Step, StepWeights
from prefmix.mixing.batch.weights_v1 import RowWeights, WeightTable, apply_batch_update
from prefmix.mixing.engine import plugin
from prefmix.mixing.models.begun_blocks import BegunBlocks
from prefmix.mixing.models.full_checkpoints import LogLinearMixtureForCausalLM
from prefmix.mixing.spec import MixtureSpec, Policy

WIDTHS = (4, 2)


class Member(nn.Module):
    """Writes its mark into memory that all members share, as CUDA graphs' outputs do."""

    def __init__(self, mark: float, width: int, shared: torch.Tensor) -> None:
        super().__init__()
        self.mark, self.width, self.shared, self.runs = mark, width, shared, 0

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return self.shared[: len(input_ids), : self.width].fill_(self.mark)

    def compute_logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        return hidden_ND.sum(dim=1, keepdim=True) * torch.tensor([1.0, 0.0, -1.0])


def build(*, dtype: torch.dtype = torch.float32) -> Any:
    shared = torch.empty(8, max(WIDTHS), dtype=dtype)
    model = LogLinearMixtureForCausalLM.__new__(LogLinearMixtureForCausalLM)
    nn.Module.__init__(model)
    model.members = nn.ModuleDict(
        {"p0": Member(1.0, WIDTHS[0], shared), "p1": Member(2.0, WIDTHS[1], shared)}
    )
    model.spec = MixtureSpec(policies=tuple(Policy(name=name, model=name) for name in "ab"))
    model.hidden_sizes, model.dtype, model.vocab_size = list(WIDTHS), dtype, 3
    model.never_drawn = torch.tensor([], dtype=torch.int64)
    model.device = torch.device("cpu")
    model.step, model.is_single = Step(num_members=2, can_skip=True), False
    model._begun_blocks = BegunBlocks()
    model.max_mixed_rows = None
    model.takes_any_rows = False  # outside of an engine attention cannot be told who has which
    return model


class KnownWeights(StepWeights):
    """The weights of a step that the test has begun."""

    def __init__(self, weights_TM: torch.Tensor) -> None:
        self.weights_TM = weights_TM

    def begin_pass(self, step: Step) -> None:
        pass

    def token_coefficients(self, num_tokens: int) -> torch.Tensor:
        return self.weights_TM[:num_tokens]


def step(model: Any, weights_TM: torch.Tensor) -> torch.Tensor:
    tokens = torch.arange(len(weights_TM))
    model.weights = KnownWeights(weights_TM)
    with override_forward_context(SimpleNamespace(attn_metadata={})):
        out: torch.Tensor = model(tokens, tokens)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_members_that_reuse_one_output_buffer_do_not_overwrite_each_other(
    dtype: torch.dtype,
) -> None:
    weights_TM = torch.tensor([[0.1, 0.9], [0.7, 0.3]])
    out = step(build(dtype=dtype), weights_TM)
    assert (out[:, :4] == 1).all()
    assert (out[:, 4:6] == 2).all()
    columns = 2 * torch.float32.itemsize // dtype.itemsize
    assert torch.equal(out[:, 6 : 6 + columns].contiguous().view(torch.float32), weights_TM)
    assert out.stride() == (16, 1), "a GPU reads rows that begin at multiples of 16 elements whole"


def test_more_rows_than_the_memory_profile_saw_are_mixed_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of prompt logprobs, 1,024 at a time; nothing of them is measured or checked."""
    model = build()
    out = step(model, torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.1, 0.9]]))
    out[3, 0] = torch.nan
    whole_NV = model.compute_logits(out)
    rows, mix = [], model.mix

    def counted(hidden: Any, weights_NM: torch.Tensor) -> torch.Tensor:
        rows.append(len(weights_NM))
        mixed_NV: torch.Tensor = mix(hidden, weights_NM)
        return mixed_NV

    monkeypatch.setattr(model, "mix", counted)
    model.step.checks_rows, model.max_mixed_rows = True, 2
    parts_NV = model.compute_logits(out)
    torch.testing.assert_close(parts_NV, whole_NV, equal_nan=True, atol=0, rtol=0)
    assert rows == [2, 2, 1]
    assert model.step.broken_rows_N is None
    assert model.step.logits is None


def test_logits_mix_what_the_row_carries_in_any_row_order() -> None:
    model = build()
    out = step(model, torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.0, 1.0]]))
    logits = model.compute_logits(out[[2, 0]])
    # Members' logits are +-(width * mark): 4 and 4.
    assert logits.tolist() == [[4.0, 0.0, -4.0], [4.0, 0.0, -4.0]]


@pytest.mark.parametrize("weights", [[0.25, 0.75], [1.0, 0.0], [-1.5, 2.5]])
def test_a_token_that_is_never_drawn_is_banned_whatever_the_weights(weights: list[float]) -> None:
    model = build()
    model.spec = replace(model.spec, weight_space="affine")
    model.never_drawn = torch.tensor([1])
    out = step(model, torch.tensor([weights]))
    assert model.compute_logits(out).tolist() == [[4.0, -torch.inf, -4.0]]
    members = model.member_logits(torch.split(out, [*WIDTHS, 10], dim=-1)[:2])
    assert all(logits[0, 1] == -torch.inf and logits[0, 0].isfinite() for logits in members)


def test_a_member_without_weight_does_not_run_and_leaves_no_trace() -> None:
    model = build()
    model.members["p1"].shared.fill_(torch.nan)
    model.step.begin([True, False], [])
    out = step(model, torch.tensor([[1.0, 0.0]]))
    assert model.members["p1"].runs == 0
    assert out.isfinite().all()
    assert model.compute_logits(out).tolist() == [[4.0, 0.0, -4.0]]


def test_where_cache_blocks_are_not_kept_apart_every_member_runs() -> None:
    model = build()
    model.step.can_skip = False
    model.step.begin([True, False], [])
    step(model, torch.tensor([[1.0, 0.0]]))
    assert model.members["p1"].runs == 1


def test_under_v1_a_pass_has_its_batchs_weights_and_uniform_ones_without_a_batch() -> None:
    device = torch.device("cpu")
    table = WeightTable(build().spec, num_rows=4, device=device)
    asked = {**wire.to_extra_args([0, 1]), wire.MEASURE_KEY: "key"}
    apply_batch_update(table, batch_size=1, added=[(0, asked)], moved=[])
    weights, under_way = RowWeights(table), Step(num_members=2, can_skip=True)
    metadata = SimpleNamespace(query_start_loc=torch.tensor([0, 2], dtype=torch.int32))
    batch: Any = SimpleNamespace(attn_metadata={"layer": metadata})
    with override_forward_context(batch):
        weights.begin_pass(under_way)
        assert under_way.active == [False, True]
        assert weights.token_coefficients(2).tolist() == [[0, 1]] * 2
    profiling: Any = SimpleNamespace(attn_metadata=None)
    with override_forward_context(profiling):
        weights.begin_pass(under_way)
        assert under_way.active == [True, True]
        assert weights.token_coefficients(2).tolist() == [[0.5, 0.5]] * 2


@pytest.mark.parametrize(("setting", "expected"), [(None, "0"), ("1", "1")])
def test_registering_turns_off_compile_artefacts_that_never_load_on_cpu(
    setting: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own setting is kept."""
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", setting or "")
    if setting is None:
        monkeypatch.delenv("VLLM_USE_AOT_COMPILE")
    plugin.register()
    assert os.environ["VLLM_USE_AOT_COMPILE"] == expected
