"""Request weights under vLLM's V1 model runner: a table with one row per row of the batch.

V1 keeps the running requests in batch order. It reports new and moved rows to a logits processor
(prefmix.mixing.engine.logits_processor), which writes them into the table; the model reads the
table at the start of each forward pass.

Shapes: S rows of the table, M members, T tokens of a step.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prefmix.mixing import wire
from prefmix.mixing.batch.engine_settings import spec_of
from prefmix.mixing.batch.request_weights import active_members, rows_of_tokens, weights_of_request
from prefmix.mixing.batch.step import Step, StepWeights
from prefmix.mixing.spec import MixtureSpec

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class RowWeights(StepWeights):
    """Each token's weights are those of its row; uniform in passes without a batch."""

    def __init__(self, table: WeightTable) -> None:
        from vllm.forward_context import get_forward_context

        self._table = table
        self._context = get_forward_context
        uniform_M = torch.tensor(table.spec.uniform_weights, dtype=torch.float32)
        self._uniform_M = uniform_M.to(table.device_SM.device)

    def begin_pass(self, step: Step) -> None:
        if self._context().attn_metadata:
            step.begin(self._table.active_members(), self._table.active_keys())
        else:
            step.begin_without_batch()

    def token_weights(self, num_tokens: int) -> torch.Tensor:
        attn_metadata = self._context().attn_metadata
        if not attn_metadata:
            return self._uniform_M.expand(num_tokens, -1).contiguous()
        # Every attention layer's metadata describes the same batch.
        metadata = next(iter(attn_metadata.values()))
        return self._table.token_weights(metadata.query_start_loc, num_tokens)


class WeightTable:
    """The weights of running requests by batch row, on the host and on the device."""

    def __init__(self, spec: MixtureSpec, *, num_rows: int, device: torch.device) -> None:
        self.spec = spec
        self.host_SM = np.tile(np.asarray(spec.uniform_weights, dtype=np.float32), (num_rows, 1))
        self.device_SM = torch.from_numpy(self.host_SM.copy()).to(device)
        self.num_active_rows = 0
        self._is_single = spec.num_members == 1
        self.measured: list[str | None] = [None] * num_rows
        """Per row, the key under which the request's figures are kept; None if it is not
        measured."""

    def write(self, row: int, extra_args: Mapping[str, Any] | None) -> None:
        """Gives `row` the weights of a new request."""
        self.host_SM[row] = weights_of_request(extra_args, self.spec)
        self.measured[row] = wire.measured_as(extra_args)

    def copy_row(self, source: int, target: int) -> None:
        """Moves a request's weights to another row."""
        self.host_SM[target] = self.host_SM[source]
        self.measured[target] = self.measured[source]

    def swap_rows(self, row: int, other: int) -> None:
        """Exchanges two requests' weights."""
        self.host_SM[[row, other]] = self.host_SM[[other, row]]
        self.measured[row], self.measured[other] = self.measured[other], self.measured[row]

    def flush(self, num_active_rows: int) -> None:
        """Copies the host's rows to the device; rows past `num_active_rows` have no request."""
        self.num_active_rows = num_active_rows
        # The source is pageable memory, so the copy has read it when the call returns.
        self.device_SM[:num_active_rows].copy_(torch.from_numpy(self.host_SM[:num_active_rows]))

    def token_weights(self, query_start_loc: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """float32 [T, M]: each token's row of the table."""
        return self.device_SM[rows_of_tokens(query_start_loc, num_tokens)]

    def active_members(self) -> list[bool]:
        """Per member, True if any running request gives it weight."""
        if self._is_single:
            return [True]
        return active_members(self.host_SM[: self.num_active_rows])

    def active_keys(self) -> Sequence[str | None]:
        """`measured` of the running requests."""
        return self.measured[: self.num_active_rows]


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
