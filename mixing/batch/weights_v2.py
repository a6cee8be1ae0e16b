"""Request weights under vLLM's V2 model runner: a table with one row per request slot.

V2 gives each request a slot for as long as it runs and tells a ModelState about it. The weights of
a step's tokens are gathered before the forward pass, because a CUDA graph may replay the pass
without running any Python.

Source of the hooks: vllm.v1.worker.gpu.model_states.interface.ModelState (vLLM 0.32).
Shapes: S request slots, M members, T tokens of a step (padded).
"""

from __future__ import annotations

from collections.abc import Mapping
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
from prefmix.mixing.batch.step import Step, StepWeights
from prefmix.mixing.spec import MixtureSpec


class SlotWeights(StepWeights):
    """The weights of running requests by slot, and those of the step's tokens."""

    def __init__(
        self, spec: MixtureSpec, *, num_slots: int, num_tokens: int, device: torch.device
    ) -> None:
        self.spec = spec
        shape_SM = (num_slots, spec.num_members)
        self.table_SM = StagedWriteTensor(shape_SM, dtype=torch.float32, device=device)
        uniform_M = torch.tensor(spec.uniform_weights, dtype=torch.float32, device=device)
        self.table_SM.gpu.copy_(uniform_M.expand(shape_SM))
        # Profiling and graph capture use slots before any request does: they must see all members.
        self.host_SM = np.ones(shape_SM, dtype=np.float32)
        self.measured: list[str | None] = [None] * num_slots
        """Per slot, the key under which the request's figures are kept; None if it is not
        measured."""
        # One storage for every step: full CUDA graphs replay with the addresses they captured.
        self.token_weights_TM = uniform_M.expand(num_tokens, -1).contiguous()

    def write(self, slot: int, extra_args: Mapping[str, Any] | None) -> None:
        """Gives `slot` the weights of a new request; `table_SM.apply_write` sends them to the
        device."""
        weights_M = weights_of_request(extra_args, self.spec)
        self.host_SM[slot] = weights_M
        self.measured[slot] = wire.measured_as(extra_args)
        self.table_SM.stage_write(slot, 0, list(weights_M))

    def begin_step(self, step: Step, batch: InputBatch) -> None:
        """Gathers the weights of the batch's tokens and tells the step who runs."""
        num_reqs, num_tokens = batch.num_reqs, batch.num_tokens_after_padding
        rows_T = rows_of_tokens(batch.query_start_loc[: num_reqs + 1], num_tokens)
        slots_T = batch.idx_mapping[:num_reqs][rows_T]
        weights_TM = self.token_weights_TM[:num_tokens]
        torch.index_select(self.table_SM.gpu, 0, slots_T, out=weights_TM)
        slots = batch.idx_mapping_np[:num_reqs]
        step.begin(active_members(self.host_SM[slots]), [self.measured[slot] for slot in slots])

    def begin_pass(self, step: Step) -> None:
        """Nothing is left to do: MixtureModelState has begun the step."""

    def token_weights(self, num_tokens: int) -> torch.Tensor:
        return self.token_weights_TM[:num_tokens]


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

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        sampling_params = new_req_data.sampling_params
        extra_args = None if sampling_params is None else sampling_params.extra_args
        self.weights.write(req_index, extra_args)

    def apply_staged_writes(self) -> None:
        super().apply_staged_writes()
        self.weights.table_SM.apply_write()

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        self.weights.begin_step(self.model.step, input_batch)
        return inputs

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_dummy_inputs(num_reqs, num_tokens)
        # What is captured is replayed for every batch: all members.
        self.model.step.begin_without_batch()
        return inputs
