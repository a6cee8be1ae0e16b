"""Requests' coefficients under vLLM's V2 model runner: a table with one row per request slot.

V2 gives each request a slot for as long as it runs and tells a ModelState about it. The
coefficients of a step's tokens are gathered before the forward pass, because a CUDA graph may
replay the pass without running any Python.

Source of the hooks: vllm.v1.worker.gpu.model_states.interface.ModelState (vLLM 0.32).
Shapes: S request slots, M members, C coefficients, T tokens of a step (padded).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState

from prefmix.mixing.batch.heads_v2 import MemberGroups, SlotHeads
from prefmix.mixing.batch.request_mixing import RequestMixing, active_members, rows_of_tokens
from prefmix.mixing.batch.step import Step, StepWeights
from prefmix.mixing.prompts.member_rows import MemberRows
from prefmix.mixing.spec import MixtureSpec


class SlotWeights(StepWeights):
    """The coefficients of running requests by slot, and those of the step's tokens."""

    def __init__(
        self, spec: MixtureSpec, *, num_slots: int, num_tokens: int, device: torch.device
    ) -> None:
        self.spec = spec
        default = RequestMixing.of_request(None, spec)
        default_C = torch.tensor(default.coefficients(spec), dtype=torch.float32, device=device)
        shape_SC = (num_slots, len(default_C))
        self.table_SC = StagedWriteTensor(shape_SC, dtype=torch.float32, device=device)
        self.table_SC.gpu.copy_(default_C.expand(shape_SC))
        # Profiling and graph capture use slots before any request does: they must see all members.
        self.host_SM = np.ones((num_slots, spec.num_members), dtype=np.float32)
        self.requests: list[RequestMixing] = [default] * num_slots
        """Per slot the request that it belongs to."""
        self.slot_heads: SlotHeads | None = None
        """The policies' own prompts; None of servers without."""
        # One storage for every step: full CUDA graphs replay with the addresses they captured.
        self.coefficients_TC = default_C.expand(num_tokens, -1).contiguous()

    def write(self, slot: int, extra_args: Mapping[str, Any] | None) -> None:
        """Gives `slot` to a new request; `table_SC.apply_write` sends its coefficients to the
        device."""
        request = self.requests[slot] = RequestMixing.of_request(extra_args, self.spec)
        coefficients = request.coefficients(self.spec)
        self.host_SM[slot] = coefficients[: self.spec.num_members]
        self.table_SC.stage_write(slot, 0, list(coefficients))
        if self.slot_heads is not None:
            self.slot_heads.write(slot, request.heads)

    def apply_staged_writes(self) -> None:
        """Sends what was written to the device."""
        self.table_SC.apply_write()
        if self.slot_heads is not None:
            self.slot_heads.apply_staged_writes()

    def begin_step(self, step: Step, batch: InputBatch) -> None:
        """Gathers the coefficients of the batch's tokens and tells the step who runs."""
        num_reqs, num_tokens = batch.num_reqs, batch.num_tokens_after_padding
        rows_T = rows_of_tokens(batch.query_start_loc[: num_reqs + 1], num_tokens)
        slots_T = batch.idx_mapping[:num_reqs][rows_T]
        coefficients_TC = self.coefficients_TC[:num_tokens]
        torch.index_select(self.table_SC.gpu, 0, slots_T, out=coefficients_TC)
        slots = batch.idx_mapping_np[:num_reqs]
        step.begin(active_members(self.host_SM[slots]), [self.requests[slot] for slot in slots])

    def begin_pass(self, step: Step) -> None:
        """Nothing is left to do: MixtureModelState has begun the step."""

    def token_coefficients(self, num_tokens: int) -> torch.Tensor:
        return self.coefficients_TC[:num_tokens]

    def rows(self, num_tokens: int) -> MemberRows | None:
        return None if self.slot_heads is None else self.slot_heads.rows(num_tokens)

    def own_slots(
        self, num_tokens: int, member_of: Callable[[str], int]
    ) -> AbstractContextManager[None]:
        assert self.slot_heads is not None
        return self.slot_heads.running(num_tokens, member_of)


class MixtureModelState(DefaultModelState):
    """Passes on to SlotWeights what the runner tells about requests and steps."""

    supports_prompt_embeds = False

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: Any) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self.weights = model.weights = SlotWeights(
            model.spec,
            num_slots=self.max_num_reqs,
            num_tokens=self.max_num_tokens,
            device=device,
        )
        if model.spec.has_prompts:
            num_members = model.spec.num_members
            self.weights.slot_heads = SlotHeads(
                num_members,
                num_slots=self.max_num_reqs,
                num_tokens=self.max_num_tokens,
                longest=self.max_model_len,
                device=device,
            )
            self._groups = MemberGroups(vllm_config, device, num_members)
        self._begun: InputBatch | None = None
        """The batch that the heads' buffers have been filled for."""

    def initialize_kv_cache(self, kv_cache_config: Any, block_tables: Any) -> None:
        super().initialize_kv_cache(kv_cache_config, block_tables)
        if self.weights.slot_heads is not None:
            self.weights.slot_heads.make_tables(kv_cache_config, block_tables)

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        sampling_params = new_req_data.sampling_params
        extra_args = None if sampling_params is None else sampling_params.extra_args
        self.weights.write(req_index, extra_args)

    def apply_staged_writes(self) -> None:
        super().apply_staged_writes()
        self.weights.apply_staged_writes()

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: Any,
        block_tables: tuple[torch.Tensor, ...],
        slot_mappings: torch.Tensor,
        attn_groups: list[list[Any]],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """vLLM's metadata by layer; with prompts of the policies' own each layer has its
        member's."""
        heads = self.weights.slot_heads
        if heads is None:
            return super().prepare_attn(
                input_batch,
                cudagraph_mode,
                block_tables,
                slot_mappings,
                attn_groups,
                *args,
                **kwargs,
            )
        num_rows, num_tokens = len(block_tables[0]), slot_mappings.shape[1]
        by_member = self._groups.of_members(attn_groups, self.model.member_of_layer)
        seen = heads.begin_step(input_batch, block_tables, slot_mappings)
        self._begun = input_batch
        found: dict[str, Any] = {}
        for member, own in enumerate(seen):
            found |= super().prepare_attn(
                own,
                cudagraph_mode,
                heads.tables_of(member, num_rows),
                heads.slots_of(member, num_tokens),
                by_member[member],
                *args,
                **kwargs,
            )
        return found

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        self.weights.begin_step(self.model.step, input_batch)
        heads = self.weights.slot_heads
        if heads is not None and self._begun is not input_batch:  # a pass without attention
            heads.begin_step(input_batch)
        self._begun = None
        return inputs

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_dummy_inputs(num_reqs, num_tokens)
        # What is captured is replayed for every batch: all members.
        self.model.step.begin_without_batch()
        return inputs
