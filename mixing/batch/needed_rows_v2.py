"""The rows that a step of a shared trunk needs: each request's tokens for each policy that it
weighs. On a GPU, under vLLM's V2 model runner.

A pair is a member and a request that gives it weight. A step's rows are the tokens of its pairs,
member by member, and behind them padding:

    | member 0: tokens of its requests | member 1: tokens of its requests | ... | padding |

Nothing in a compiled pass or a CUDA graph says whose row is which. That is data: token id,
position, scales of the adapters, slot of the key, and the block table and length of each pair,
which attention takes as one list (prefmix.mixing.batch.joined_requests_v2). A graph that was
captured with T' tokens of all M members has M T' rows, and so serves every set of pairs with no
more rows than that: a step replays the smallest that fits, however many tokens it has. Hidden
states come back to their places behind the graph. Policies with prompts of their own lay their
tokens out first (prefmix.mixing.batch.heads_v2), and rows are taken from there.

A request's weights never change while it runs, so the host knows the pairs of a step without asking
the device, and sends them in one copy that waits for nothing. As long as the same requests draw a
token each, rows stay where they are, and nothing is sent.
Members that a request leaves out write no keys for it. None are read: the scheduler keeps cached
blocks apart by the set of members that filled them (prefmix.mixing.engine.scheduler).

Shapes: M members, B requests and T tokens of a step, P pairs (prefmix.mixing.batch.pairs), L
entries of the list (the pairs, and what stands for padding), R rows without padding, J joined
layers, K adapters, D hidden width.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from vllm import envs
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import get_forward_context, override_forward_context
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch

from prefmix.mixing.batch.joined_requests_v2 import JoinedLayers, JoinedRequests
from prefmix.mixing.batch.pairs import Pairs, Views, pairs_of


class _Plan(NamedTuple):
    """The part of a step that stays the same as long as its requests do."""

    pairs: Pairs
    lengths_L: np.ndarray
    starts: np.ndarray
    """int32 [L + 1]."""
    tokens_R: torch.Tensor
    members_R: torch.Tensor
    views_R: torch.Tensor
    views_P: torch.Tensor
    slots_F: torch.Tensor
    """The request slot of each of the first member's rows."""
    first_blocks_JP: Sequence[torch.Tensor]
    first_slots_JR: Sequence[torch.Tensor]


class NeededRows(JoinedRequests):
    """The rows of a step and the list of their requests, in buffers of fixed addresses."""

    def __init__(
        self,
        layers: Sequence[JoinedLayers],
        *,
        set_scales: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None],
        has_experts: bool,
        **sizes: Any,
    ) -> None:
        """Args:
        set_scales: of prefmix.mixing.models.stack.Stack.
        has_experts: true if routers of experts want to know the padding.
        sizes: of JoinedRequests.
        """
        super().__init__(layers, **sizes)
        device: torch.device = sizes["device"]
        self._set_scales, self._has_experts = set_scales, has_experts
        self._most_listed = len(self._seq_lens)
        most_rows = self._num_members * sizes["num_tokens"]
        self.graph_sizes: Mapping[Any, Sequence[int]] = {}
        """By kind of CUDA graph the numbers of tokens for which there are graphs, ascending."""
        self._ids_R = torch.zeros(most_rows, dtype=torch.int32, device=device)
        self._positions_R = torch.zeros(most_rows, dtype=torch.int64, device=device)
        self._places_R = torch.arange(most_rows, dtype=torch.int32, device=device)
        self._is_padding_R = torch.zeros(most_rows, dtype=torch.bool, device=device)
        self._first_blocks_host_JM = np.array([each.first_blocks_M for each in layers])
        # What the host sends. Attention reads the first part, the starts, where it always lies.
        room = (2 + len(layers)) * (self._most_listed + 1) + (6 + 2 * len(layers)) * most_rows
        self._sent = torch.zeros(room + room % 2, dtype=torch.int32, device=device)
        self._key: tuple[Any, ...] | None = None
        self._plan: _Plan | None = None
        self.num_rows = 0
        """Rows of the step, padding included."""
        self.is_captured = False
        """True if a full CUDA graph is being captured: what the pass returns is replayed."""

    @property
    def tokens_of_graph(self) -> int:
        """The number of tokens that the step's graph was captured with."""
        return self.num_rows // self._num_members

    def begin(
        self,
        batch: InputBatch,
        weighs_BM: np.ndarray,
        scales: tuple[torch.Tensor, np.ndarray],
        views: Views,
        *,
        mode: Any,
        is_captured: bool,
    ) -> InputBatch:
        """Lays out a step.

        Args:
          weighs_BM: true where a request gives a member weight.
          scales: float32 [S, K] by request slot, the scales of the first member's rows, and each
            request's slot [B].
          views: the step as its members read it.
          mode: the kind of CUDA graph that vLLM has found for the step.
          is_captured: true if a full CUDA graph is being captured.
        Returns: the list as a batch, for vLLM's builders of metadata.
        """
        starts = batch.query_start_loc_np[: batch.num_reqs + 1]
        said = (weighs_BM, starts, scales[1], views.starts_MB, views.lengths_MB)
        key = (mode, is_captured, *(each.tobytes() for each in said))
        if self._plan is None or key != self._key:
            self._plan = self._planned(pairs_of(weighs_BM, starts, views), scales[1], mode)
            self._key, self.is_captured = key, is_captured
        pairs, lengths_L, starts = self._plan[:3]
        # Others set scales, too: the check of an adapter that comes into a slot.
        self._set_scales(self._plan.members_R, scales[0], self._plan.slots_F)
        self._gather(self._plan, views)
        rest = slice(len(pairs.lengths_P), len(lengths_L))
        longest_L = lengths_L.copy()
        longest_L[rest] = lengths_L[rest][:1]  # all padding sees as many keys as its first entry
        prefilling_L = np.zeros(len(lengths_L), dtype=np.bool_)
        longest_L[: rest.start] = views.longest_MB[pairs.members_P, pairs.requests_P]
        prefilling_L[: rest.start] = batch.is_prefilling_np[pairs.requests_P]
        not_known: Any = None  # the kinds of attention that are joined read none of them
        return dataclasses.replace(
            batch,
            num_reqs=len(lengths_L),
            num_reqs_after_padding=len(lengths_L),
            num_tokens=self.num_rows,
            num_tokens_after_padding=self.num_rows,
            num_scheduled_tokens=lengths_L,
            max_query_len=int(lengths_L.max()),
            query_start_loc=self._sent[: len(starts)],
            query_start_loc_np=starts,
            seq_lens=self._seq_lens[: len(lengths_L)],
            seq_lens_cpu_upper_bound=torch.from_numpy(longest_L),
            is_prefilling_np=prefilling_L,
            positions=not_known,
            idx_mapping_np=not_known,
        )

    def _padded(self, num_rows: int, mode: Any) -> int:
        """The rows of the smallest graph that has room for these; as many if no graph is
        replayed."""
        sizes = self.graph_sizes.get(mode)
        if not sizes:
            return num_rows
        tokens = -(-num_rows // self._num_members)
        return self._num_members * sizes[bisect_left(sizes, tokens)]

    def _with_padding(self, lengths_P: np.ndarray, num_padding: int) -> np.ndarray:
        """The lengths of the list, in which padding is requests of as few rows as there are places
        for: of one, but where there are few requests and far larger graphs."""
        each = -(-num_padding // (self._most_listed - len(lengths_P)))
        padding = np.full(-(-num_padding // max(each, 1)), each, dtype=np.int32)
        if num_padding:
            padding[-1] += num_padding - padding.sum()
        return np.concatenate([lengths_P, padding])

    def _planned(self, pairs: Pairs, slots_B: np.ndarray, mode: Any) -> _Plan:
        """Sends the pairs, and writes what depends on nothing else."""
        num_rows, num_pairs = len(pairs.tokens_R), len(pairs.lengths_P)
        self.num_rows = self._padded(num_rows, mode)
        lengths_L = self._with_padding(pairs.lengths_P, self.num_rows - num_rows)
        starts = np.zeros(len(lengths_L) + 1, dtype=np.int32)
        np.cumsum(lengths_L, out=starts[1:])
        firsts_JM, sizes_J = self._first_blocks_host_JM, np.array(self._block_sizes)
        # The first member's pairs come first: their rows have the scales of their requests.
        lengths_P, num_first = pairs.lengths_P, np.searchsorted(pairs.members_P, 1)
        slots_F = slots_B[np.repeat(pairs.requests_P[:num_first], lengths_P[:num_first])]
        first_slots_JR = (firsts_JM * sizes_J[:, None])[:, pairs.members_R]
        wide = [pairs.tokens_R, pairs.members_R, *first_slots_JR]
        narrow = [pairs.views_R, pairs.views_P, slots_F, *firsts_JM[:, pairs.members_P]]
        found_wide, found_narrow = self._send(starts, wide, narrow)
        if self._knows_padding:
            is_padding_R = self._is_padding_R[: self.num_rows]
            torch.ge(self._places_R[: self.num_rows], num_rows, out=is_padding_R)
        if num_rows < self.num_rows:
            rest = slice(num_pairs, len(lengths_L))
            self._see_nobody(rest, num_keys=int(lengths_L[rest][0]))
            self._slots[:, num_rows : self.num_rows].fill_(-1)
        tokens_R, members_R, *first_slots = found_wide
        views_R, views_P, own_slots_F, *first_blocks = found_narrow
        return _Plan(
            pairs,
            lengths_L,
            starts,
            tokens_R,
            members_R,
            views_R,
            views_P,
            own_slots_F,
            first_blocks,
            first_slots,
        )

    def _see_nobody(self, rest: slice, *, num_keys: int) -> None:
        """Makes entries of the list see so many keys of the block that no request has."""
        self._seq_lens[rest].fill_(min(num_keys, self._most_keys))
        for table, layers, size in zip(self._tables, self._layers, self._block_sizes, strict=True):
            table[rest, : -(-num_keys // size)].fill_(layers.first_blocks_M[0])

    def forget(self) -> None:
        """Makes the next step a new one, as when other graphs have been captured."""
        self._key = None

    def _gather(self, plan: _Plan, views: Views) -> None:
        """Copies what the views have about the requests and tokens of the pairs."""
        num_rows, num_pairs = len(plan.tokens_R), len(plan.views_P)
        torch.index_select(views.ids, 0, plan.views_R, out=self._ids_R[:num_rows])
        torch.index_select(views.positions, 0, plan.views_R, out=self._positions_R[:num_rows])
        torch.index_select(views.seq_lens, 0, plan.views_P, out=self._seq_lens[:num_pairs])
        longest = int(views.longest_MB.max())
        for index, layers in enumerate(self._layers):
            used = -(-longest // self._block_sizes[index])
            for group, own_P, own_R in _of_groups(layers, plan.pairs):
                own_table_PW = views.tables[group][:, :used]
                table = self._tables[index][own_P, : own_table_PW.shape[1]]
                torch.index_select(own_table_PW, 0, plan.views_P[own_P], out=table)
                table.add_(plan.first_blocks_JP[index][own_P, None])
                slots_R = views.slots[group].index_select(0, plan.views_R[own_R])
                in_joined_R = slots_R + plan.first_slots_JR[index][own_R]
                torch.where(slots_R < 0, slots_R, in_joined_R, out=self._slots[index, own_R])

    def _send(
        self, starts: np.ndarray, wide: Sequence[np.ndarray], narrow: Sequence[np.ndarray]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Copies arrays to the device at once, behind the starts: as int64 and as int32."""
        head = len(starts) + len(starts) % 2  # int64 begins at a multiple of 8 bytes
        ends = head + 2 * sum(map(len, wide))
        on_host = np.empty(ends + sum(map(len, narrow)), dtype=np.int32)
        on_host[: len(starts)] = starts
        np.concatenate(wide, out=on_host[head:ends].view(np.int64))
        np.concatenate(narrow, out=on_host[ends:], casting="same_kind")
        sent = async_tensor_h2d(on_host, out=self._sent[: len(on_host)])
        as_wide = sent[head:ends].view(torch.int64).split([len(each) for each in wide])
        return list(as_wide), list(sent[ends:].split([len(each) for each in narrow]))

    @property
    def _knows_padding(self) -> bool:
        return self._has_experts and envs.VLLM_MOE_SKIP_PADDING

    @property
    def slots_of_rows(self) -> torch.Tensor:
        """int64 [J, rows]."""
        return self._slots[:, : self.num_rows]

    @property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and positions by row."""
        return self._ids_R[: self.num_rows], self._positions_R[: self.num_rows]

    @contextmanager
    def running_rows(self) -> Iterator[None]:
        """Within this context a pass has the step's rows, not the step's tokens."""
        context = get_forward_context()
        own: dict[str, Any] = {}
        if context.cudagraph_runtime_mode == CUDAGraphMode.PIECEWISE:
            own["batch_descriptor"] = dataclasses.replace(
                context.batch_descriptor, num_tokens=self.tokens_of_graph
            )
        slots = {
            name: slots_R
            for layers, slots_R in zip(self._layers, self.slots_of_rows, strict=True)
            for name in layers.names
        }
        is_padding = self._is_padding_R[: self.num_rows] if self._knows_padding else None
        rows = dataclasses.replace(context, slot_mapping=slots, is_padding=is_padding, **own)
        with override_forward_context(rows):
            yield

    def spread(self, hidden_RD: torch.Tensor, out_TMD: torch.Tensor) -> None:
        """Writes rows, which may have padding behind them, to their tokens' and members' places.
        Places of no row are left as they are."""
        assert self._plan is not None
        places = (self._plan.tokens_R, self._plan.members_R)
        out_TMD.index_put_(places, hidden_RD[: len(places[0])])

    def are_all(self, num_tokens: int) -> bool:
        """True if each of so many tokens has a row of each member."""
        assert self._plan is not None
        return len(self._plan.tokens_R) == self._num_members * num_tokens


def _of_groups(layers: JoinedLayers, pairs: Pairs) -> Iterator[tuple[int, slice, slice]]:
    """(group of cache blocks, its pairs, their rows): members with the same group one after the
    other are together."""
    begin = 0
    groups = layers.groups_M
    for member, group in enumerate(groups):
        if member + 1 < len(groups) and groups[member + 1] == group:
            continue
        own_P, own_R = (
            slice(*np.searchsorted(each, [begin, member + 1]))
            for each in (pairs.members_P, pairs.members_R)
        )
        begin = member + 1
        if own_R.stop > own_R.start:
            yield group, own_P, own_R
