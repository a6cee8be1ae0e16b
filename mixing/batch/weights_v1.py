"""Requests' coefficients under vLLM's V1 model runner: a table with one row per row of the batch.

V1 keeps the running requests in batch order. It reports new and moved rows to a logits processor
(prefmix.mixing.engine.logits_processor), which writes them into the table; the model reads the
table at the start of each forward pass.

Shapes: S rows of the table, M members, C coefficients, T tokens of a step.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prefmix.mixing.batch.engine_settings import spec_of
from prefmix.mixing.batch.request_mixing import RequestMixing, active_members, rows_of_tokens
from prefmix.mixing.batch.step import Step, StepWeights
from prefmix.mixing.prompts.step_heads import StepHeads
from prefmix.mixing.spec import MixtureSpec

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class RowWeights(StepWeights):
    """Each token's coefficients are those of its row; the default ones in passes without a
    batch."""

    def __init__(self, table: WeightTable) -> None:
        from vllm.forward_context import get_forward_context

        self._table = table
        self._context = get_forward_context
        default = RequestMixing.of_request(None, table.spec).coefficients(table.spec)
        self._default_C = torch.tensor(default, dtype=torch.float32).to(table.device_SC.device)

    def begin_pass(self, step: Step) -> None:
        if self._context().attn_metadata:
            step.begin(self._table.active_members(), self._table.running())
        else:
            step.begin_without_batch()

    def token_coefficients(self, num_tokens: int) -> torch.Tensor:
        metadata = self._metadata()
        if metadata is None:
            return self._default_C.expand(num_tokens, -1).contiguous()
        return self._table.token_coefficients(metadata.query_start_loc, num_tokens)

    def heads(self, input_ids: torch.Tensor) -> StepHeads | None:
        metadata = self._metadata() if self._table.has_heads else None
        if metadata is None:
            return None
        return self._table.heads(metadata.query_start_loc, metadata.seq_lens, input_ids)

    def _metadata(self) -> Any:
        """The attention metadata of the batch; None in passes without one."""
        # That of every layer that does not attend in chunks describes the batch itself.
        attn_metadata = self._context().attn_metadata or {}
        return next((each for each in attn_metadata.values() if has_whole_requests(each)), None)


class WeightTable:
    """The coefficients of running requests by batch row, on the host and on the device."""

    def __init__(self, spec: MixtureSpec, *, num_rows: int, device: torch.device) -> None:
        self.spec = spec
        default = RequestMixing.of_request(None, spec)
        default_C = np.asarray(default.coefficients(spec), dtype=np.float32)
        self.host_SC = np.tile(default_C, (num_rows, 1))
        self.device_SC = torch.from_numpy(self.host_SC.copy()).to(device)
        self.num_active_rows = 0
        self._is_single = spec.num_kv_members == 1
        self.requests: list[RequestMixing] = [default] * num_rows
        """Per row the request that it belongs to."""
        # Prompts of the policies' own, of servers that have any.
        self._shifts_SM = np.zeros((num_rows, spec.num_members), dtype=np.int64)
        self._has_heads_S = np.zeros(num_rows, dtype=bool)

    def write(self, row: int, extra_args: Mapping[str, Any] | None) -> None:
        """Gives `row` to a new request."""
        request = self.requests[row] = RequestMixing.of_request(extra_args, self.spec)
        self.host_SC[row] = request.coefficients(self.spec)
        self._has_heads_S[row] = request.heads is not None
        self._shifts_SM[row] = 0 if request.heads is None else request.heads.shifts_M

    def copy_row(self, source: int, target: int) -> None:
        """Moves a request to another row."""
        for rows in (self.host_SC, self._shifts_SM, self._has_heads_S):
            rows[target] = rows[source]
        self.requests[target] = self.requests[source]

    def swap_rows(self, row: int, other: int) -> None:
        """Exchanges two requests."""
        for rows in (self.host_SC, self._shifts_SM, self._has_heads_S):
            rows[[row, other]] = rows[[other, row]]
        self.requests[row], self.requests[other] = self.requests[other], self.requests[row]

    def flush(self, num_active_rows: int) -> None:
        """Copies the host's rows to the device; rows past `num_active_rows` have no request."""
        self.num_active_rows = num_active_rows
        # The source is pageable memory, so the copy has read it when the call returns.
        self.device_SC[:num_active_rows].copy_(torch.from_numpy(self.host_SC[:num_active_rows]))

    def token_coefficients(self, query_start_loc: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """float32 [T, C]: each token's row of the table."""
        return self.device_SC[rows_of_tokens(query_start_loc, num_tokens)]

    @property
    def has_heads(self) -> bool:
        """True if a request of the batch has prompts of the policies' own."""
        return bool(self._has_heads_S[: self.num_active_rows].any())

    def heads(
        self, query_start_loc: torch.Tensor, seq_lens: torch.Tensor, input_ids: torch.Tensor
    ) -> StepHeads:
        """The prompts of the policies' own of the batch; arguments as of StepHeads."""
        num_rows = len(query_start_loc) - 1
        return StepHeads(
            [request.heads for request in self.requests[:num_rows]],
            self._shifts_SM[:num_rows],
            query_start_loc=query_start_loc,
            seq_lens=seq_lens,
            input_ids=input_ids,
        )

    def active_members(self) -> list[bool]:
        """Per member with a KV cache, True if it runs for any request."""
        if self._is_single:
            return [True]
        return active_members(self.host_SC[: self.num_active_rows, : self.spec.num_kv_members])

    def running(self) -> Sequence[RequestMixing]:
        """The requests of the batch."""
        return self.requests[: self.num_active_rows]


def has_whole_requests(metadata: Any) -> bool:
    """False for layers that attend in chunks, whose metadata has a request for each chunk.

    Source: vllm.model_executor.layers.attention.chunked_local_attention (vLLM 0.32).
    """
    return not hasattr(metadata, "make_virtual_batches_block_table")


# V1 builds the logits processor and the model separately. Both see the same compilation config,
# which lives exactly as long as its engine.
_tables: dict[int, WeightTable] = {}


def table_of_engine(vllm_config: VllmConfig, device: torch.device) -> WeightTable:
    """The one WeightTable of this worker's engine, made on first use."""
    owner = vllm_config.compilation_config
    key = id(owner)
    if key not in _tables:
        _tables[key] = WeightTable(
            spec_of(vllm_config),
            num_rows=vllm_config.scheduler_config.max_num_seqs,
            device=device,
        )
        weakref.finalize(owner, _tables.pop, key, None)
    return _tables[key]


def apply_batch_update(
    table: WeightTable,
    *,
    batch_size: int,
    added: Iterable[tuple[int, Mapping[str, Any] | None]],
    moved: Iterable[tuple[int, int, bool]],
) -> None:
    """Applies one change of V1's persistent batch to the table.

    Args:
      batch_size: running requests after the change.
      added: (row, extra_args) of new requests; they may replace others.
      moved: (source, target, is_swap), applied after `added`, in order.
    Source: vllm.v1.sample.logits_processor.interface.BatchUpdate.
    """
    for row, extra_args in added:
        table.write(row, extra_args)
    for source, target, is_swap in moved:
        (table.swap_rows if is_swap else table.copy_row)(source, target)
    table.flush(batch_size)
