"""The policies' own prompts under vLLM's V2 model runner, in buffers of fixed addresses.

A CUDA graph may replay a pass without running any Python, so all that a member reads lies in one
storage for every step, filled before the pass: token ids, positions, starts, lengths, block tables
and slots. Each member has builders of attention metadata of its own, because some keep a buffer in
which a step of another member would be written.

Source of the hooks: vllm.v1.worker.gpu.model_states.interface.ModelState (vLLM 0.32).
Shapes: S request slots, B requests and T tokens of a step (padded), M members, G groups of cache
blocks, W blocks of a table's row, L tokens of the longest prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from vllm.forward_context import get_forward_context, override_forward_context
from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor, async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch

from prefmix.mixing.batch.joined_requests_v2 import MembersStep, part_of_group
from prefmix.mixing.batch.pairs import Views
from prefmix.mixing.prompts.member_rows import (
    MemberRows,
    lengths_of_members,
    slots_of_members,
    steps_of_members,
    tables_of_members,
)
from prefmix.mixing.prompts.request_heads import RequestHeads


class SlotHeads:
    """The heads of running requests by slot, and what the members read in the step under way."""

    def __init__(
        self,
        num_members: int,
        *,
        num_slots: int,
        num_tokens: int,
        longest: int,
        device: torch.device,
    ) -> None:
        self._num_members, self._device = num_members, device
        # Read a few rows a step: as vLLM's own prompts, these stay on the host where that is
        # possible.
        self._heads = StagedWriteTensor(
            (num_slots * num_members, longest), torch.int32, device, uva_instead_of_gpu=True
        )
        self._shifts_SM = np.zeros((num_slots, num_members), dtype=np.int32)
        self._lengths_SM = np.zeros((num_slots, num_members), dtype=np.int32)
        shape_MT = (num_members, num_tokens)

        def filled(values: Any, dtype: torch.dtype) -> torch.Tensor:
            return torch.as_tensor(values, dtype=dtype, device=device).expand(shape_MT).contiguous()

        self._ids_MT = filled(0, torch.int32)
        self._positions_MT = filled(0, torch.int64)
        self._source_MT = filled(torch.arange(num_tokens), torch.int64)
        self._destination_MT = self._source_MT.clone()
        self._starts = torch.zeros((num_members, num_slots + 1), dtype=torch.int32, device=device)
        self._seq_lens_MS = torch.zeros((num_members, num_slots), dtype=torch.int32, device=device)
        self._tables: list[torch.Tensor] = []
        self._slots_GMT = torch.empty(0)
        self._block_sizes: list[int] = []
        self._group_of_layer: dict[str, int] = {}
        self._place_of_layer: dict[str, tuple[int, int]] | None = None
        """(member, group) by layer; None until the first pass."""

    def make_tables(self, kv_cache_config: Any, block_tables: Any) -> None:
        """Makes the buffers that depend on the cache.

        Args: those of ModelState.initialize_kv_cache.
        """
        self._block_sizes = list(block_tables.block_sizes)
        self._tables = [
            torch.zeros((self._num_members, *each.shape), dtype=each.dtype, device=self._device)
            for each in block_tables.input_block_tables
        ]
        num_tokens = self._ids_MT.shape[1]
        shape_GMT = (len(self._block_sizes), self._num_members, num_tokens)
        self._slots_GMT = torch.full(shape_GMT, -1, dtype=torch.int64, device=self._device)
        groups = enumerate(kv_cache_config.kv_cache_groups)
        self._group_of_layer = {name: at for at, group in groups for name in group.layer_names}
        self._place_of_layer = None

    def write(self, slot: int, heads: RequestHeads | None) -> None:
        """Gives `slot` to a new request; `apply_staged_writes` sends its heads to the device."""
        # Members without a KV cache, behind the others, have no rows.
        self._shifts_SM[slot] = 0 if heads is None else heads.shifts_M[: self._num_members]
        self._lengths_SM[slot] = 0
        if heads is None:
            return
        for member, ids in enumerate(heads.ids_M[: self._num_members]):
            if ids is not None and len(ids):
                self._lengths_SM[slot, member] = len(ids)
                self._heads.stage_write(slot * self._num_members + member, 0, ids.tolist())

    def apply_staged_writes(self) -> None:
        """Sends what was written to the device."""
        self._heads.apply_write()

    def begin_step(
        self,
        batch: InputBatch,
        tables: Sequence[torch.Tensor] | None = None,
        slots_GT: torch.Tensor | None = None,
    ) -> list[InputBatch]:
        """Fills the buffers for a batch.

        Args:
          tables, slots_GT: the engine's; None in a pass without attention.
        Returns: the batch as each member sees it.
        """
        num_rows, num_tokens = batch.num_reqs_after_padding, batch.num_tokens_after_padding
        host_MB, device_MB = self._of_batch(batch)
        shifts_MB, lengths_MB = device_MB[: self._num_members], device_MB[self._num_members :]
        seq_lens_B, starts = batch.seq_lens[:num_rows], batch.query_start_loc[: num_rows + 1]
        steps = steps_of_members(starts, seq_lens_B, shifts_MB, num_tokens=num_tokens)
        self._starts[:, : num_rows + 1] = steps.starts
        self._seq_lens_MS[:, :num_rows] = steps.seq_lens_MB
        self._source_MT[:, :num_tokens] = steps.source_MT
        self._destination_MT[:, :num_tokens] = steps.destination_MT
        self._positions_MT[:, :num_tokens] = steps.positions_MT
        # A head's tokens, and behind it the engine's.
        members_M1 = torch.arange(self._num_members, device=self._device)[:, None]
        requests_MT = steps.requests_T[steps.source_MT]
        slots_B = batch.idx_mapping.new_zeros(num_rows)
        slots_B[: batch.num_reqs] = batch.idx_mapping
        rows_MT = slots_B[requests_MT] * self._num_members + members_M1
        is_head_MT = steps.positions_MT < lengths_MB.gather(1, requests_MT)
        places_MT = torch.where(is_head_MT, steps.positions_MT, 0)
        self._ids_MT[:, :num_tokens] = torch.where(
            is_head_MT, self._heads.gpu[rows_MT, places_MT], batch.input_ids[steps.source_MT]
        )
        for group, table_BW in enumerate(tables or ()):
            size = self._block_sizes[group]
            own_MBW = tables_of_members(table_BW[:num_rows], shifts_MB, block_size=size)
            self._tables[group][:, :num_rows] = own_MBW
            assert slots_GT is not None
            self._slots_GMT[group, :, :num_tokens] = slots_of_members(
                steps, shifts_MB, table_BW, slots_GT[group][:num_tokens], block_size=size
            )
        return [
            self._seen_by(member, batch, host_MB[member]) for member in range(self._num_members)
        ]

    def _of_batch(self, batch: InputBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Shifts [M, B] on the host, and with the heads' lengths behind them on the device."""
        slots = batch.idx_mapping_np[: batch.num_reqs]
        host = np.zeros((2 * self._num_members, batch.num_reqs_after_padding), dtype=np.int32)
        host[: self._num_members, : batch.num_reqs] = self._shifts_SM[slots].T
        host[self._num_members :, : batch.num_reqs] = self._lengths_SM[slots].T
        on_host = torch.from_numpy(host)
        return on_host[: self._num_members], async_tensor_h2d(host, device=self._device)

    def _seen_by(self, member: int, batch: InputBatch, shifts_B: torch.Tensor) -> InputBatch:
        """The batch as a member sees it. Without drafts the host knows all lengths."""
        num_rows = batch.num_reqs_after_padding
        lengths_B = torch.from_numpy(np.diff(batch.query_start_loc_np[: num_rows + 1]))
        longest_B = batch.seq_lens_cpu_upper_bound[:num_rows]
        own_lengths_B = lengths_of_members(lengths_B, longest_B, shifts_B[None])[0]
        own_starts = torch.zeros(num_rows + 1, dtype=torch.int32)
        torch.cumsum(own_lengths_B, 0, out=own_starts[1:])
        return dataclasses.replace(
            batch,
            num_scheduled_tokens=own_lengths_B.numpy()[: batch.num_reqs],
            query_start_loc=self._starts[member, : num_rows + 1],
            query_start_loc_np=own_starts.numpy(),
            seq_lens=self._seq_lens_MS[member, :num_rows],
            seq_lens_cpu_upper_bound=torch.maximum(
                longest_B - shifts_B, own_lengths_B.clamp(max=1)
            ),
            positions=self._positions_MT[member, : batch.num_tokens_after_padding],
        )

    def tables_of(self, member: int, num_rows: int) -> tuple[torch.Tensor, ...]:
        """The block tables of a member, [B, W] each."""
        return tuple(each[member, :num_rows] for each in self._tables)

    def slots_of(self, member: int, num_tokens: int) -> torch.Tensor:
        """int64 [G, T], the slots of a member."""
        return self._slots_GMT[:, member, :num_tokens]

    def all_members(
        self, seen: Sequence[InputBatch], num_rows: int, num_tokens: int
    ) -> MembersStep:
        """The step that has begun. Args: seen: what `begin_step` has returned."""
        return MembersStep(
            batches=seen,
            starts=self._starts[:, : num_rows + 1],
            seq_lens_MB=self._seq_lens_MS[:, :num_rows],
            tables=[each[:, :num_rows] for each in self._tables],
            slots_MGT=self._slots_GMT.transpose(0, 1)[:, :, :num_tokens],
        )

    def views(self, seen: Sequence[InputBatch]) -> Views:
        """The step that has begun, without its padding. Args: seen: what `begin_step` has
        returned."""
        num_reqs = seen[0].num_reqs
        starts_MB = np.stack([each.query_start_loc_np[: num_reqs + 1] for each in seen])
        longest_MB = [each.seq_lens_cpu_upper_bound.numpy()[:num_reqs] for each in seen]
        return Views(
            ids=self._ids_MT.flatten(),
            positions=self._positions_MT.flatten(),
            seq_lens=self._seq_lens_MS.flatten(),
            tables=[each.flatten(0, 1) for each in self._tables],
            slots=[each.flatten() for each in self._slots_GMT],
            starts_MB=starts_MB[:, :-1],
            lengths_MB=np.diff(starts_MB),
            longest_MB=np.stack(longest_MB),
            rows_apart=self._ids_MT.shape[1],
            requests_apart=self._seq_lens_MS.shape[1],
        )

    @contextmanager
    def running(self, num_tokens: int, member_of: Callable[[str], int]) -> Iterator[None]:
        """Within this context each member's layers store keys in the member's slots.

        Args:
          member_of: the member of a layer, by its name.
        """
        context = get_forward_context()
        if not context.attn_metadata:  # profiling, warm-up
            yield
            return
        if self._place_of_layer is None:
            groups = self._group_of_layer.items()
            self._place_of_layer = {name: (member_of(name), group) for name, group in groups}
        slots_MGT = self._slots_GMT.transpose(0, 1)[:, :, :num_tokens]
        parts = {place: slots_MGT[place] for place in set(self._place_of_layer.values())}
        slots = {name: parts[place] for name, place in self._place_of_layer.items()}
        # Padding lies elsewhere in the members' rows, and who knows of none computes it.
        own = dataclasses.replace(context, slot_mapping=slots, is_padding=None)
        with override_forward_context(own):
            yield

    def rows(self, num_tokens: int) -> MemberRows:
        """The tokens and positions that the members read in the step."""
        return MemberRows(
            *(
                each[:, :num_tokens]
                for each in (
                    self._ids_MT,
                    self._positions_MT,
                    self._source_MT,
                    self._destination_MT,
                )
            )
        )


class MemberGroups:
    """vLLM's groups of attention layers, split by member, each with builders of its own."""

    def __init__(self, vllm_config: Any, device: torch.device, num_members: int) -> None:
        self._vllm_config, self._device, self._num_members = vllm_config, device, num_members
        self._split: list[list[list[Any]]] | None = None

    def of_members(
        self, groups: list[list[Any]], member_of: Callable[[str], int]
    ) -> list[list[list[Any]]]:
        """The groups of each member, made once: a graph may hold what a builder keeps.

        Args:
          groups: vllm.v1.worker.utils.AttentionGroup by group of cache blocks.
          member_of: the member of a layer, by its name.
        """
        if self._split is None:
            members = range(self._num_members)
            self._split = [
                [
                    [part for group in each if (part := self._part(group, member, member_of))]
                    for each in groups
                ]
                for member in members
            ]
        return self._split

    def _part(self, group: Any, member: int, member_of: Callable[[str], int]) -> Any | None:
        names = [name for name in group.layer_names if member_of(name) == member]
        return part_of_group(group, names, self._vllm_config, self._device) if names else None
