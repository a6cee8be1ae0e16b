"""The requests of all members of a shared trunk as one list, for one call of attention a layer.

On a GPU, under vLLM's V2 model runner. The caches of a layer's members are one cache with more
blocks (prefmix.mixing.models.joined_attention), so each member's requests are further requests,
with blocks of the member's own. Their rows are where the stack of members has them
(prefmix.mixing.models.stack): T rows a member, of which the last ones may belong to no request. A
request that fills them up keeps the list free of gaps.

All that attention reads lies in one storage for every step, because a CUDA graph may replay it. A
graph's steps have one row a request; requests that pad the graph get one, too. Whatever stands for
padding sees the block that no request has, and no fewer keys than it has rows: vLLM never gives
kernels a row without a key, and some have waited for it for ever.

Shapes: M members, B requests a member (padded), P of them with the one that fills up, T rows a
member (padded), G groups of the engine's cache blocks, J of them as the joined layers need them, W
blocks of a table's row.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from vllm.forward_context import get_forward_context, override_forward_context
from vllm.v1.worker.gpu.input_batch import InputBatch


class JoinedLayers(NamedTuple):
    """Layers of attention that read one list of requests."""

    names: list[str]
    """Names of the first member's layers."""
    groups_M: list[int]
    """Per member, the group of the engine's cache blocks that its layers are in."""
    first_blocks_M: list[int]
    """Per member, the index in the joined cache of its first block."""


class MembersStep(NamedTuple):
    """A step as the members see it."""

    batches: Sequence[InputBatch]
    """Per member; read on the host only."""
    starts: torch.Tensor
    """int32 [M, B + 1], the first row of each request, then the number of rows that are run."""
    seq_lens_MB: torch.Tensor
    """int32; 0 for padding."""
    tables: Sequence[torch.Tensor]
    """Per group int32 [M, B, W]."""
    slots_MGT: torch.Tensor
    """int64; negative where nothing is stored."""


class JoinedRequests:
    """The list of a step, in buffers of fixed addresses."""

    def __init__(
        self,
        layers: Sequence[JoinedLayers],
        *,
        block_sizes: Sequence[int],
        widths: Sequence[int],
        num_requests: int,
        num_tokens: int,
        device: torch.device,
    ) -> None:
        """Args:
        block_sizes, widths: per group of cache blocks the tokens of a block, and W.
        num_requests, num_tokens: the most of a step.
        """
        self._layers = layers
        self._num_members = num_members = len(layers[0].groups_M)
        self._block_sizes = [block_sizes[each.groups_M[0]] for each in layers]
        most = num_members * (num_requests + 1)

        def buffer(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._starts, self._seq_lens = buffer(most + 1), buffer(most)
        self._tables = [
            buffer(most, max(widths[group] for group in each.groups_M)) for each in layers
        ]
        tables = zip(self._tables, self._block_sizes, strict=True)
        self._most_keys = min(table.shape[1] * size for table, size in tables)
        self._slots = buffer(len(layers), num_members * num_tokens, dtype=torch.int64)
        self._counts = torch.arange(most + 1, dtype=torch.int32, device=device)
        members = np.arange(num_members, dtype=np.int32)
        self._members_M1 = torch.from_numpy(members[:, None]).to(device)
        firsts_JM = np.array([each.first_blocks_M for each in layers], dtype=np.int32)
        self._first_blocks_JM = torch.from_numpy(firsts_JM).to(device)
        sizes_J1 = np.array(self._block_sizes, dtype=np.int64)[:, None]
        self._first_slots_JM = torch.from_numpy(firsts_JM * sizes_J1).to(device)
        self._groups: list[list[Any]] | None = None

    def fill(self, step: MembersStep, *, num_tokens: int, one_row_each: bool) -> InputBatch:
        """Writes the list of a step.

        Args:
          num_tokens: T.
          one_row_each: true for a step of a full CUDA graph, or its capture: B = T.
        Returns: the list as a batch, for vLLM's builders of metadata.
        """
        num_members, (_, num_rows) = self._num_members, step.seq_lens_MB.shape
        own_lengths = [np.diff(each.query_start_loc_np[: num_rows + 1]) for each in step.batches]
        lengths_MP = np.stack(own_lengths)
        if one_row_each:
            lengths_MP = np.ones_like(lengths_MP)
        rest_M = num_tokens - lengths_MP.sum(1, dtype=np.int32)
        if rest_M.any():
            lengths_MP = np.concatenate([lengths_MP, rest_M[:, None]], axis=1)
        num_listed = lengths_MP.size
        longest_MP = np.full_like(lengths_MP, min(max(1, rest_M.max()), self._most_keys))
        prefilling_MP = np.zeros(lengths_MP.shape, dtype=np.bool_)
        for member, batch in enumerate(step.batches):
            longest_B = batch.seq_lens_cpu_upper_bound.numpy()[:num_rows]
            longest_MP[member, :num_rows] = np.maximum(longest_B, 1)
            prefilling_MP[member, : batch.num_reqs] = batch.is_prefilling_np[: batch.num_reqs]
        self._write_requests(step, num_tokens, longest_MP, one_row_each=one_row_each)
        self._write_blocks(step, num_tokens, longest_MP)
        starts = np.zeros(num_listed + 1, dtype=np.int32)
        np.cumsum(lengths_MP.ravel(), out=starts[1:])
        promised = step.batches[0].max_query_len
        not_known: Any = None  # the kinds of attention that are joined read none of them
        return dataclasses.replace(
            step.batches[0],
            num_reqs=num_listed,
            num_reqs_after_padding=num_listed,
            num_tokens=num_members * num_tokens,
            num_tokens_after_padding=num_members * num_tokens,
            num_scheduled_tokens=lengths_MP.ravel(),
            max_query_len=promised and max(promised, int(rest_M.max())),
            query_start_loc=self._starts[: num_listed + 1],
            query_start_loc_np=starts,
            seq_lens=self._seq_lens[:num_listed],
            seq_lens_cpu_upper_bound=torch.from_numpy(longest_MP.ravel()),
            is_prefilling_np=prefilling_MP.ravel(),
            positions=not_known,
            idx_mapping_np=not_known,
        )

    def _write_requests(
        self, step: MembersStep, num_tokens: int, longest_MP: np.ndarray, *, one_row_each: bool
    ) -> None:
        num_members, num_places = longest_MP.shape
        num_rows, num_listed = step.seq_lens_MB.shape[1], longest_MP.size
        starts, seq_lens = self._starts[: num_listed + 1], self._seq_lens[:num_listed]
        if one_row_each:
            starts.copy_(self._counts[: num_listed + 1])
        else:
            # Behind a member's requests `starts` has the first row that none of them runs.
            own_MP = starts[:num_listed].view(num_members, num_places)
            torch.add(step.starts[:, :num_places], self._members_M1, alpha=num_tokens, out=own_MP)
            starts[num_listed:].fill_(num_members * num_tokens)
        lens_MP = seq_lens.view(num_members, num_places)
        torch.clamp(step.seq_lens_MB, min=1, out=lens_MP[:, :num_rows])
        if num_places > num_rows:
            lens_MP[:, num_rows:].fill_(int(longest_MP[0, num_rows]))

    def _write_blocks(self, step: MembersStep, num_tokens: int, longest_MP: np.ndarray) -> None:
        num_members, num_places = longest_MP.shape
        num_rows, longest = step.seq_lens_MB.shape[1], int(longest_MP.max())
        for index, layers in enumerate(self._layers):
            firsts_M = self._first_blocks_JM[index]
            table = self._tables[index][: num_members * num_places]
            table_MPW = table.view(num_members, num_places, -1)
            used = -(-longest // self._block_sizes[index])
            for where, rows_MBW, slots_MT in _of_groups(layers, step):
                width = min(used, rows_MBW.shape[2])
                torch.add(
                    rows_MBW[:, :, :width],
                    firsts_M[where, None, None],
                    out=table_MPW[where, :num_rows, :width],
                )
                own_MT = self._slots[index, : num_members * num_tokens]
                first_slots_M1 = self._first_slots_JM[index, where, None]
                own_MT.view(num_members, num_tokens)[where] = torch.where(
                    slots_MT < 0, slots_MT, slots_MT + first_slots_M1
                )
            if num_places > num_rows:
                own = -(-int(longest_MP[0, num_rows]) // self._block_sizes[index])
                table_MPW[:, num_rows:, :own] = firsts_M[:, None, None]

    def tables(self, num_listed: int) -> tuple[torch.Tensor, ...]:
        """Per joined layers the block tables of the list, int32 [M * P, W]."""
        return tuple(each[:num_listed] for each in self._tables)

    def slots(self, num_tokens: int) -> torch.Tensor:
        """int64 [J, M * T]."""
        return self._slots[:, : self._num_members * num_tokens]

    @property
    def kv_cache_config(self) -> Any:
        """The part that builders of metadata read of a cache's configuration."""
        return SimpleNamespace(kv_cache_groups=self._layers)

    def attention_groups(
        self, groups: Sequence[Sequence[Any]], vllm_config: Any, device: torch.device
    ) -> list[list[Any]]:
        """vLLM's groups of attention layers for the joined ones, with builders of their own. They
        are made once: a graph may hold what a builder keeps.

        Args:
          groups: vllm.v1.worker.utils.AttentionGroup by group of cache blocks.
        """
        if self._groups is None:
            config = config_of_list(vllm_config, self._num_members)
            self._groups = [
                [
                    part_of_group(group, names, config, device)
                    for group in groups[layers.groups_M[0]]
                    if (names := [each for each in group.layer_names if each in layers.names])
                ]
                for layers in self._layers
            ]
        return self._groups

    @contextmanager
    def running(self, num_tokens: int, *, knows_padding: bool) -> Iterator[None]:
        """Within this context layers store keys in the list's slots.

        Args:
          knows_padding: false if the members have their padding in places of their own.
        """
        context = get_forward_context()
        if not context.attn_metadata:  # profiling, warm-up
            yield
            return
        slots = {
            name: slots_R
            for layers, slots_R in zip(self._layers, self.slots(num_tokens), strict=True)
            for name in layers.names
        }
        is_padding = context.is_padding if knows_padding else None
        own = dataclasses.replace(context, slot_mapping=slots, is_padding=is_padding)
        with override_forward_context(own):
            yield


def _of_groups(
    layers: JoinedLayers, step: MembersStep
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """(members, their tables [m, B, W], their slots [m, T]): of all members at once where they are
    in one group."""
    first = layers.groups_M[0]
    if len(set(layers.groups_M)) == 1:
        yield slice(None), step.tables[first], step.slots_MGT[:, first]
        return
    for member, group in enumerate(layers.groups_M):
        where = slice(member, member + 1)
        yield where, step.tables[group][where], step.slots_MGT[where, group]


def part_of_group(group: Any, names: list[str], vllm_config: Any, device: torch.device) -> Any:
    """Some layers of a vllm.v1.worker.utils.AttentionGroup as a group with a builder of its own."""
    part = dataclasses.replace(group, layer_names=names, metadata_builders=[])
    part.create_metadata_builders(
        vllm_config=vllm_config,
        device=device,
        kernel_block_size=group.metadata_builders[0].kv_cache_spec.block_size,
    )
    for builder in part.metadata_builders:
        if hasattr(builder, "set_workspace_buffer"):  # parts run one after the other
            builder.set_workspace_buffer(group.metadata_builders[0]._get_workspace_buffer())
    return part


def config_of_list(vllm_config: Any, num_members: int) -> Any:
    """The configuration from which a builder takes the sizes of its buffers and graphs, for lists
    of all members' requests."""
    config = copy.copy(vllm_config)
    config.scheduler_config = copy.copy(config.scheduler_config)
    config.scheduler_config.max_num_seqs = num_members * (config.scheduler_config.max_num_seqs + 1)
    config.compilation_config = compilation = copy.copy(config.compilation_config)
    if compilation.max_cudagraph_capture_size is not None:
        compilation.max_cudagraph_capture_size *= num_members
    if compilation.cudagraph_capture_sizes is not None:
        compilation.cudagraph_capture_sizes = [
            num_members * size for size in compilation.cudagraph_capture_sizes
        ]
    return config
