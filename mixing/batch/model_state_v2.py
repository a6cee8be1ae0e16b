"""Request weights under vLLM's V2 model runner: a ModelState with one table row per request slot.

Source of the hooks: vllm.v1.worker.gpu.model_states.interface.ModelState (vLLM 0.32).
Shapes: S request slots, M members, T tokens of a step (padded).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState

from prefmix.mixing import wire
from prefmix.mixing.batch.request_weights import active_members, rows_of_tokens, weights_of_request


class MixtureModelState(DefaultModelState):
    """Keeps each slot's weights and hands the model `token_weights` every step."""

    supports_prompt_embeds = False

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: Any) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self.spec = model.spec
        shape_SM = (self.max_num_reqs, self.spec.num_members)
        self.table_SM = StagedWriteTensor(shape_SM, dtype=torch.float32, device=device)
        uniform_M = torch.tensor(self.spec.uniform_weights, dtype=torch.float32, device=device)
        self.table_SM.gpu.copy_(uniform_M.expand(shape_SM))
        # Profiling and graph capture use slots before any request does: they must see all members.
        self.host_SM = np.ones(shape_SM, dtype=np.float32)
        self.measured: list[str | None] = [None] * self.max_num_reqs
        # One storage for every step: full CUDA graphs replay with the addresses they captured.
        self.token_weights_TM = uniform_M.expand(self.max_num_tokens, -1).contiguous()

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        sampling_params = new_req_data.sampling_params
        extra_args = None if sampling_params is None else sampling_params.extra_args
        weights_M = weights_of_request(extra_args, self.spec)
        self.host_SM[req_index] = weights_M
        self.measured[req_index] = wire.measured_as(extra_args)
        self.table_SM.stage_write(req_index, 0, list(weights_M))

    def apply_staged_writes(self) -> None:
        super().apply_staged_writes()
        self.table_SM.apply_write()

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        num_reqs = input_batch.num_reqs
        num_tokens = input_batch.num_tokens_after_padding
        rows_T = rows_of_tokens(input_batch.query_start_loc[: num_reqs + 1], num_tokens)
        weights_TM = self.token_weights_TM[:num_tokens]
        slots_T = input_batch.idx_mapping[:num_reqs][rows_T]
        torch.index_select(self.table_SM.gpu, 0, slots_T, out=weights_TM)
        slots = input_batch.idx_mapping_np[:num_reqs]
        self.model.set_active_members(active_members(self.host_SM[slots]))
        self.model.begin_step([self.measured[slot] for slot in slots])
        return {**inputs, "token_weights": weights_TM}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_dummy_inputs(num_reqs, num_tokens)
        # What is captured is replayed for every batch: all members.
        self.model.set_active_members([True] * self.spec.num_members)
        return {**inputs, "token_weights": self.token_weights_TM[:num_tokens]}
