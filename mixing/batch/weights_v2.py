"""Requests' coefficients under vLLM's V2 model runner: a table with one row per request slot.

V2 gives each request a slot for as long as it runs and tells a ModelState about it. The
coefficients of a step's tokens are gathered before the forward pass, because a CUDA graph may
replay the pass without running any Python.

Source of the hooks: vllm.v1.worker.gpu.model_states.interface.ModelState (vLLM 0.32).
Shapes: S request slots, P members with a KV cache, C coefficients, T tokens of a step (padded).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState

from prefmix.mixing.batch.graphs_v2 import choose_graphs_by_rows, why_all_rows
from prefmix.mixing.batch.heads_v2 import MemberGroups, SlotHeads
from prefmix.mixing.batch.joined_requests_v2 import JoinedLayers, JoinedRequests, MembersStep
from prefmix.mixing.batch.needed_rows_v2 import NeededRows
from prefmix.mixing.batch.pairs import views_of_engine
from prefmix.mixing.batch.pieces_v2 import Pieces, pieces_of, take_pieces
from prefmix.mixing.batch.request_mixing import RequestMixing, active_members, rows_of_tokens
from prefmix.mixing.batch.step import Step, StepWeights
from prefmix.mixing.prompts.member_rows import MemberRows
from prefmix.mixing.spec import MixtureSpec

logger = init_logger(f"vllm.{__name__}")


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
        self.host_SP = np.ones((num_slots, spec.num_kv_members), dtype=np.float32)
        self.requests: list[RequestMixing] = [default] * num_slots
        """Per slot the request that it belongs to."""
        self.slot_heads: SlotHeads | None = None
        """The policies' own prompts; None of servers without."""
        self.joined: JoinedRequests | None = None
        """The list that the attention of all members reads; None if each reads its own."""
        self.needed: NeededRows | None = None
        """The list of the rows that a step needs; None where all members run all tokens, or no list
        is read."""
        self.pieces: Pieces | None = None
        """The choice between CUDA graphs; None if the runner has none."""
        # One storage for every step: full CUDA graphs replay with the addresses they captured.
        self.coefficients_TC = default_C.expand(num_tokens, -1).contiguous()

    def write(self, slot: int, extra_args: Mapping[str, Any] | None) -> None:
        """Gives `slot` to a new request; `table_SC.apply_write` sends its coefficients to the
        device."""
        request = self.requests[slot] = RequestMixing.of_request(extra_args, self.spec)
        coefficients = request.coefficients(self.spec)
        self.host_SP[slot] = coefficients[: self.spec.num_kv_members]
        self.table_SC.stage_write(slot, 0, list(coefficients))
        if self.slot_heads is not None:
            self.slot_heads.write(slot, request.heads)

    def apply_staged_writes(self) -> None:
        """Sends what was written to the device."""
        self.table_SC.apply_write()
        if self.slot_heads is not None:
            self.slot_heads.apply_staged_writes()

    def takes_pieces(self, slots: np.ndarray) -> bool:
        """True if a step of these slots' requests had better replay the pieces of its members than
        a graph of all."""
        if self.pieces is None:
            return False
        active_P = active_members(self.host_SP[slots])
        return not all(active_P) and self.pieces.are_faster(active_P)

    def begin_step(self, step: Step, batch: InputBatch) -> None:
        """Gathers the coefficients of the batch's tokens and tells the step who runs."""
        num_reqs, num_tokens = batch.num_reqs, batch.num_tokens_after_padding
        rows_T = rows_of_tokens(batch.query_start_loc[: num_reqs + 1], num_tokens)
        slots_T = batch.idx_mapping[:num_reqs][rows_T]
        coefficients_TC = self.coefficients_TC[:num_tokens]
        torch.index_select(self.table_SC.gpu, 0, slots_T, out=coefficients_TC)
        slots = batch.idx_mapping_np[:num_reqs]
        step.begin(active_members(self.host_SP[slots]), [self.requests[slot] for slot in slots])

    def begin_pass(self, step: Step) -> None:
        """Nothing is left to do: MixtureModelState has begun the step."""

    def token_coefficients(self, num_tokens: int) -> torch.Tensor:
        return self.coefficients_TC[:num_tokens]

    def rows(self, num_tokens: int) -> MemberRows | None:
        return None if self.slot_heads is None else self.slot_heads.rows(num_tokens)

    def needed_rows(self) -> NeededRows | None:
        # Without attention, as in profiling, nothing has been laid out.
        return self.needed if self.needed and get_forward_context().attn_metadata else None

    def own_slots(
        self, num_tokens: int, member_of: Callable[[str], int]
    ) -> AbstractContextManager[None]:
        if self.joined is not None and self.needed is None:
            return self.joined.running(num_tokens, knows_padding=self.slot_heads is None)
        if self.slot_heads is not None:
            return self.slot_heads.running(num_tokens, member_of)
        return nullcontext()


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
            num_members = model.spec.num_kv_members
            self.weights.slot_heads = SlotHeads(
                num_members,
                num_slots=self.max_num_reqs,
                num_tokens=self.max_num_tokens,
                longest=self.max_model_len,
                device=device,
            )
        self._begun: InputBatch | None = None
        """The batch that the heads' buffers have been filled for."""
        self._is_dummy = False
        """True if a CUDA graph is about to be captured."""

    def initialize_kv_cache(self, kv_cache_config: Any, block_tables: Any) -> None:
        super().initialize_kv_cache(kv_cache_config, block_tables)
        take_pieces()
        num_members = self.model.spec.num_kv_members
        self._groups = MemberGroups(self.vllm_config, self.device, num_members)
        if self.weights.slot_heads is not None:
            self.weights.slot_heads.make_tables(kv_cache_config, block_tables)
        self._join(self.model.join_attention(kv_cache_config), block_tables)
        self.weights.pieces = None
        if self.weights.needed is None:
            self.weights.pieces = pieces_of(self.model, self.vllm_config)

    def _join(self, layers: Sequence[JoinedLayers], block_tables: Any) -> None:
        """Makes the list that the attention of all members reads. Args: layers: none if each reads
        its own."""
        weights, model = self.weights, self.model
        if weights.needed is not None:
            model.step.runs_everyone = True  # as before the joining
        weights.joined = weights.needed = None
        if not layers:
            return
        sizes = {
            "block_sizes": block_tables.block_sizes,
            "widths": [each.shape[1] for each in block_tables.input_block_tables],
            "num_requests": self.max_num_reqs,
            "num_tokens": self.max_num_tokens,
            "device": self.device,
        }
        has_positions = self.rope_state is not None
        if reason := why_all_rows(model, self.vllm_config, has_positions=has_positions):
            weights.joined = JoinedRequests(layers, **sizes)
            logger.info("Steps run all policies of the trunk, weighed or not: %s.", reason)
            return
        choose_graphs_by_rows()
        has_experts = self.model_config.is_moe
        weights.needed = NeededRows(
            layers, set_scales=model.stack.set_scales, has_experts=has_experts, **sizes
        )
        weights.joined = weights.needed
        model.step.runs_everyone = False
        logger.info("Steps run the policies of the trunk that their requests weigh.")

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
        heads, joined = self.weights.slot_heads, self.weights.joined
        if joined is not None:
            if self.weights.needed is not None:
                listed, slots = self._list_needed(
                    self.weights.needed,
                    input_batch,
                    block_tables,
                    slot_mappings,
                    mode=cudagraph_mode,
                    is_captured=kwargs.get("for_capture", False),
                )
            else:
                is_replayed = cudagraph_mode == CUDAGraphMode.FULL or kwargs.get("for_capture")
                listed, slots = self._list_all(
                    joined, input_batch, block_tables, slot_mappings, is_replayed=bool(is_replayed)
                )
            together: dict[str, Any] = super().prepare_attn(
                listed,
                cudagraph_mode,
                joined.tables(listed.num_reqs),
                slots,
                joined.attention_groups(attn_groups, self.vllm_config, self.device),
                joined.kv_cache_config,
                *args[1:],
                **{key: value for key, value in kwargs.items() if key != "kv_cache_config"},
            )
            return together
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
        seen = heads.begin_step(input_batch, block_tables, slot_mappings)
        self._begun = input_batch
        num_rows, num_tokens = len(block_tables[0]), slot_mappings.shape[1]
        by_member = self._groups.of_members(attn_groups, self.model.member_of_layer)
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

    def _list_needed(
        self,
        needed: NeededRows,
        batch: InputBatch,
        block_tables: tuple[torch.Tensor, ...],
        slot_mappings: torch.Tensor,
        *,
        mode: Any,
        is_captured: bool,
    ) -> tuple[InputBatch, torch.Tensor]:
        """The list of a step's pairs of a member and a request that weighs it, and its slots."""
        weights = self.weights
        slots_B = batch.idx_mapping_np[: batch.num_reqs]
        weighs_BM = weights.host_SP[slots_B] != 0
        if self._is_dummy:  # what is captured is replayed for every batch
            weighs_BM = np.ones_like(weighs_BM)
        self._is_dummy = False
        if weights.slot_heads is None:
            num_members = self.model.spec.num_kv_members
            views = views_of_engine(batch, block_tables, slot_mappings, num_members)
        else:
            views = weights.slot_heads.views(
                weights.slot_heads.begin_step(batch, block_tables, slot_mappings)
            )
            self._begun = batch
        listed = needed.begin(
            batch,
            weighs_BM,
            (weights.table_SC.gpu[:, weights.spec.num_kv_members :], slots_B),
            views,
            mode=mode,
            is_captured=is_captured,
        )
        return listed, needed.slots_of_rows

    def _list_all(
        self,
        joined: JoinedRequests,
        batch: InputBatch,
        block_tables: tuple[torch.Tensor, ...],
        slot_mappings: torch.Tensor,
        *,
        is_replayed: bool,
    ) -> tuple[InputBatch, torch.Tensor]:
        """The list of all members' requests, and its slots."""
        heads, num_members = self.weights.slot_heads, self.model.spec.num_kv_members
        num_listed = len(block_tables[0]) if is_replayed else batch.num_reqs
        num_tokens = slot_mappings.shape[1]
        if heads is not None:
            seen = heads.begin_step(batch, block_tables, slot_mappings)
            self._begun = batch
            step = heads.all_members(seen, num_listed, num_tokens)
        else:
            step = MembersStep(
                batches=[batch] * num_members,
                starts=batch.query_start_loc[: num_listed + 1].expand(num_members, -1),
                seq_lens_MB=batch.seq_lens[:num_listed].expand(num_members, -1),
                tables=[each[:num_listed].expand(num_members, -1, -1) for each in block_tables],
                slots_MGT=slot_mappings.expand(num_members, -1, -1),
            )
        listed = joined.fill(step, num_tokens=num_tokens, one_row_each=is_replayed)
        return listed, joined.slots(num_tokens)

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
        self._is_dummy = True
        return inputs
