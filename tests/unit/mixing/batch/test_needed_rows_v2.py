"""The rows that a step needs, against each member running its own requests alone."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from prefmix.mixing.models.stack import Stack

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.input_batch import InputBatch

    from prefmix.mixing.batch.needed_rows_v2 import NeededRows

pytestmark = pytest.mark.usefixtures("vllm")

BLOCK, WIDTH, NUM_BLOCKS = 4, 10, 40
MOST_REQUESTS, MOST_TOKENS, NUM_SLOTS = 6, 64, 9
ADAPTED = (0, 2)
FIRST_BLOCKS = [0, 2 * NUM_BLOCKS, NUM_BLOCKS]
CPU = torch.device("cpu")


def needed_rows(groups_M: list[int], **sizes: list[int]) -> NeededRows:
    """Rows for two kinds of layers, whose caches begin elsewhere. Args: sizes: of graphs, by
    kind."""
    from vllm.config import CUDAGraphMode

    from prefmix.mixing.batch.joined_requests_v2 import JoinedLayers
    from prefmix.mixing.batch.needed_rows_v2 import NeededRows

    stack = Stack(
        num_members=3,
        adapter_members=ADAPTED,
        max_rows=3 * MOST_TOKENS,
        takes_any_rows=False,
        device=CPU,
    )
    num_groups = max(groups_M) + 1
    needed = NeededRows(
        [
            JoinedLayers(["a"], groups_M, FIRST_BLOCKS),
            JoinedLayers(["b"], groups_M[::-1], [each + 120 for each in FIRST_BLOCKS]),
        ],
        set_scales=stack.set_scales,
        has_experts=True,
        block_sizes=[BLOCK] * num_groups,
        widths=[WIDTH] * num_groups,
        num_requests=MOST_REQUESTS,
        num_tokens=MOST_TOKENS,
        device=CPU,
    )
    needed.graph_sizes = {CUDAGraphMode[kind]: each for kind, each in sizes.items()}
    return needed


def batch_of(lengths: np.ndarray, seq_lens: np.ndarray, rng: np.random.Generator) -> InputBatch:
    from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

    buffers = InputBuffers(MOST_REQUESTS, MOST_TOKENS, CPU)
    dummy = InputBatch.make_dummy(len(lengths), MOST_TOKENS, buffers)
    starts = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    return dataclasses.replace(
        dummy,
        num_tokens=int(starts[-1]),
        query_start_loc_np=starts,
        seq_lens=torch.from_numpy(seq_lens),
        seq_lens_cpu_upper_bound=torch.from_numpy(seq_lens + rng.integers(0, 2)),
        is_prefilling_np=lengths > 1,
        input_ids=torch.from_numpy(rng.integers(0, 99, size=MOST_TOKENS, dtype=np.int32)),
        positions=torch.from_numpy(rng.integers(0, 99, size=MOST_TOKENS)),
    )


class Drawn:
    """A step of random requests, sets and lengths; with prompts each member has its own view."""

    def __init__(
        self, seed: int, *, num_groups: int, is_decode: bool, has_prompts: bool = False
    ) -> None:
        from prefmix.mixing.batch.pairs import Views, views_of_engine

        rng = np.random.default_rng(seed)
        num_requests = int(rng.integers(1, MOST_REQUESTS + 1))
        self.lengths = rng.integers(1, 9, size=num_requests).astype(np.int32)
        if is_decode:
            self.lengths[:] = 1
        seq_lens = (self.lengths + rng.integers(0, 20, size=num_requests)).astype(np.int32)
        self.weighs_BM = rng.random((num_requests, 3)) < 0.5
        self.weighs_BM[range(num_requests), rng.integers(0, 3, size=num_requests)] = True
        self.batch = batch_of(self.lengths, seq_lens, rng)
        self.request_slots = rng.permutation(NUM_SLOTS)[:num_requests]
        self.scales_SK = torch.randn(NUM_SLOTS, len(ADAPTED))
        copies = 3 if has_prompts else 1
        shape = (num_groups, copies * MOST_REQUESTS, WIDTH)
        tables = torch.from_numpy(rng.integers(1, NUM_BLOCKS, size=shape).astype(np.int32))
        shape = (num_groups, copies * MOST_TOKENS)
        slots = torch.from_numpy(rng.integers(0, NUM_BLOCKS * BLOCK, size=shape))
        slots[:, rng.integers(0, MOST_TOKENS)] = -1
        if not has_prompts:
            self.views = views_of_engine(self.batch, list(tables), slots, 3)
            return
        lengths_MB = rng.integers(1, self.lengths + 1, size=(3, num_requests))
        seq_lens_MS = rng.integers(8, 28, size=(3, MOST_REQUESTS)).astype(np.int32)
        self.views = Views(
            ids=torch.from_numpy(rng.integers(0, 99, size=3 * MOST_TOKENS, dtype=np.int32)),
            positions=torch.from_numpy(rng.integers(0, 99, size=3 * MOST_TOKENS)),
            seq_lens=torch.from_numpy(seq_lens_MS.ravel()),
            tables=list(tables),
            slots=list(slots),
            starts_MB=lengths_MB.cumsum(1) - lengths_MB,
            lengths_MB=lengths_MB,
            longest_MB=seq_lens_MS[:, :num_requests] + rng.integers(0, 2),
            rows_apart=MOST_TOKENS,
            requests_apart=MOST_REQUESTS,
        )

    def begin(self, needed: NeededRows, mode: Any, *, is_captured: bool = False) -> InputBatch:
        return needed.begin(
            self.batch,
            self.weighs_BM,
            (self.scales_SK, self.request_slots),
            self.views,
            mode=mode,
            is_captured=is_captured,
        )


@pytest.mark.parametrize("has_prompts", [False, True])
@pytest.mark.parametrize("groups_M", [[0, 0, 0], [0, 1, 1], [0, 1, 0]])
@pytest.mark.parametrize("seed", range(24))
def test_each_row_is_a_token_of_a_member_that_its_request_weighs(
    seed: int, groups_M: list[int], has_prompts: bool
) -> None:
    from vllm.config import CUDAGraphMode

    is_decode = seed % 2 == 0
    num_groups = max(groups_M) + 1
    drawn = Drawn(seed, num_groups=num_groups, is_decode=is_decode, has_prompts=has_prompts)
    mode = (CUDAGraphMode.NONE, CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL)[seed % 3]
    if mode == CUDAGraphMode.FULL and not is_decode:
        mode = CUDAGraphMode.PIECEWISE
    needed = needed_rows(groups_M, FULL=[1, 2, 4, 6], PIECEWISE=[1, 2, 4, 8, 64])
    Drawn(seed + 100, num_groups=2, is_decode=False).begin(needed, CUDAGraphMode.NONE)
    listed, views = drawn.begin(needed, mode), drawn.views
    ids_R, positions_R = needed.inputs
    lists = list(zip(needed.tables(listed.num_reqs), needed.slots_of_rows, strict=True))
    scales_RK = needed._set_scales.__self__._scales_RK
    row = entry = 0
    for member in range(3):
        for request in range(len(drawn.lengths)):
            if not drawn.weighs_BM[request, member]:
                continue
            length = int(views.lengths_MB[member, request])
            seen = request + member * views.requests_apart
            first = int(views.starts_MB[member, request]) + member * views.rows_apart
            assert listed.query_start_loc[entry : entry + 2].tolist() == [row, row + length]
            assert listed.seq_lens[entry] == views.seq_lens[seen]
            assert listed.seq_lens_cpu_upper_bound[entry] >= views.seq_lens[seen]
            assert listed.is_prefilling_np[entry] == (drawn.lengths[request] > 1)
            for layers, (table, slots) in zip(needed._layers, lists, strict=True):
                group, block = layers.groups_M[member], layers.first_blocks_M[member]
                used = -(-int(views.seq_lens[seen]) // BLOCK)
                assert torch.equal(table[entry, :used], views.tables[group][seen, :used] + block)
                for place in range(length):
                    slot = int(views.slots[group][first + place])
                    assert slots[row + place] == (slot if slot < 0 else slot + block * BLOCK)
            for place in range(length):
                assert ids_R[row + place] == views.ids[first + place]
                assert positions_R[row + place] == views.positions[first + place]
                own_scales = [float(each == member) for each in ADAPTED]
                if member == 0:
                    own_scales = drawn.scales_SK[drawn.request_slots[request]].tolist()
                assert scales_RK[row + place].tolist() == own_scales
                # A member that has less of a request has its last tokens.
                token = int(drawn.batch.query_start_loc_np[request + 1]) - length + place
                assert [int(each[row + place]) for each in needed._plan[3:5]] == [token, member]
            row, entry = row + length, entry + 1
    # Padding stores nothing, and each of its rows looks at keys of a block that nobody has.
    assert needed.num_rows == len(ids_R) >= row
    assert int(listed.query_start_loc[-1]) == listed.num_tokens == needed.num_rows
    assert listed.query_start_loc.tolist() == listed.query_start_loc_np.tolist()
    assert len(listed.seq_lens_cpu_upper_bound) == listed.num_reqs == len(listed.seq_lens)
    own_lengths, seen = listed.query_start_loc.diff(), listed.seq_lens
    assert (seen[entry:] >= own_lengths[entry:].clamp(max=WIDTH * BLOCK)).all()
    assert (seen <= listed.seq_lens_cpu_upper_bound).all()
    for table, slots in lists:
        assert (slots[row:] == -1).all()
        firsts = {layers.first_blocks_M[0] for layers in needed._layers}
        used = -(-max(seen[entry:].tolist(), default=0) // BLOCK)
        assert set(table[entry:, :used].flatten().tolist()) <= firsts
    assert needed._is_padding_R[: needed.num_rows].tolist() == [
        place >= row for place in range(needed.num_rows)
    ]
    if is_decode:
        assert listed.num_reqs == needed.num_rows
        assert set(listed.seq_lens[entry:].tolist()) <= {1}
        assert listed.max_query_len == 1
    assert listed.max_query_len == int(listed.query_start_loc.diff().max())


def test_padding_is_requests_of_as_few_rows_as_there_are_places_for() -> None:
    """A row without a key is what vLLM never gives a kernel, and long padding costs attention."""
    from vllm.config import CUDAGraphMode

    needed = needed_rows([0, 0, 0], PIECEWISE=[8, 64])
    drawn = Drawn(0, num_groups=1, is_decode=False)
    rng = np.random.default_rng(0)
    drawn.weighs_BM, drawn.request_slots = np.array([[True, False, True]]), np.arange(1)
    places = 3 * (MOST_REQUESTS + 1) - 2
    for length, padding in ((9, [1] * 6), (13, [9] * 18 + [4])):
        lengths = np.array([length], dtype=np.int32)
        drawn.batch = batch_of(lengths, lengths + 5, rng)
        drawn.views = drawn.views._replace(
            starts_MB=np.zeros((3, 1), dtype=np.int32),
            lengths_MB=np.full((3, 1), length, dtype=np.int32),
            longest_MB=np.full((3, 1), length + 5, dtype=np.int32),
        )
        listed = drawn.begin(needed, CUDAGraphMode.PIECEWISE)
        assert listed.query_start_loc.diff().tolist() == [length] * 2 + padding
        assert len(padding) <= places
        assert listed.seq_lens[2:].tolist() == [max(padding)] * len(padding)


@pytest.mark.parametrize(
    ("weighs", "tokens"),
    [
        ([[1, 0, 0]] * 4, 2),
        ([[0, 0, 1]] * 6, 2),
        ([[1, 1, 1], [1, 0, 0]], 2),
        ([[1, 1, 1]] * 4, 4),
        ([[1, 1, 0]] * 5, 4),
        ([[0, 1, 0]], 1),
    ],
)
def test_a_step_has_the_rows_of_the_smallest_graph_with_room(
    weighs: list[list[int]], tokens: int
) -> None:
    from vllm.config import CUDAGraphMode

    from prefmix.mixing.batch.pairs import views_of_engine

    needed = needed_rows([0, 0, 0], FULL=[1, 2, 4, 6])
    drawn = Drawn(0, num_groups=1, is_decode=True)
    rng = np.random.default_rng(0)
    ones = np.ones(len(weighs), dtype=np.int32)
    drawn.batch, drawn.weighs_BM = batch_of(ones, 5 * ones, rng), np.array(weighs, dtype=bool)
    drawn.request_slots = np.arange(len(weighs))
    tables = [torch.ones(len(weighs), WIDTH, dtype=torch.int32)]
    slots = torch.zeros(1, MOST_TOKENS, dtype=torch.int64)
    drawn.views = views_of_engine(drawn.batch, tables, slots, 3)
    drawn.begin(needed, CUDAGraphMode.FULL)
    assert needed.tokens_of_graph == tokens
    drawn.begin(needed, CUDAGraphMode.NONE)
    assert needed.num_rows == int(drawn.weighs_BM.sum())


@pytest.mark.parametrize("kind", ["NONE", "PIECEWISE"])
def test_the_largest_step_has_room(kind: str) -> None:
    from vllm.config import CUDAGraphMode

    from prefmix.mixing.batch.pairs import views_of_engine

    needed = needed_rows([0, 0, 0], PIECEWISE=[MOST_TOKENS])
    drawn = Drawn(0, num_groups=1, is_decode=False)
    lengths = np.full(MOST_REQUESTS, MOST_TOKENS // MOST_REQUESTS, dtype=np.int32)
    lengths[0] += MOST_TOKENS - lengths.sum()
    drawn.batch = batch_of(lengths, lengths + 1, np.random.default_rng(0))
    drawn.weighs_BM = np.ones((MOST_REQUESTS, 3), dtype=bool)
    drawn.request_slots = np.arange(MOST_REQUESTS)
    tables = [torch.ones(MOST_REQUESTS, WIDTH, dtype=torch.int32)]
    slots = torch.arange(MOST_TOKENS)[None]
    drawn.views = views_of_engine(drawn.batch, tables, slots, 3)
    listed = drawn.begin(needed, CUDAGraphMode[kind])
    assert (listed.num_reqs, listed.num_tokens) == (3 * MOST_REQUESTS, 3 * MOST_TOKENS)
    assert needed.are_all(MOST_TOKENS)
    found = needed.slots_of_rows[0].view(3, MOST_TOKENS)
    assert torch.equal(found, slots + torch.tensor(FIRST_BLOCKS)[:, None] * BLOCK)


def test_a_graph_finds_every_step_where_it_was_captured() -> None:
    from vllm.config import CUDAGraphMode

    needed = needed_rows([0, 1, 0], FULL=[6])
    found = set()
    for seed in range(6):
        drawn = Drawn(seed, num_groups=2, is_decode=True)
        listed = drawn.begin(needed, CUDAGraphMode.FULL)
        read = (
            *needed.inputs,
            *needed.tables(listed.num_reqs),
            *needed.slots_of_rows,
            listed.query_start_loc,
            listed.seq_lens,
            needed._is_padding_R,
        )
        found.add(tuple((each.data_ptr(), each.shape) for each in read))
    assert len(found) == 1


def test_rows_that_stay_are_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next token of the same requests; their scales are those of the moment."""
    from vllm.config import CUDAGraphMode

    from prefmix.mixing.batch.needed_rows_v2 import NeededRows

    sent: list[int] = []
    send = NeededRows._send

    def sending(self: Any, *args: Any) -> Any:
        sent.append(0)
        return send(self, *args)

    monkeypatch.setattr(NeededRows, "_send", sending)
    needed, fresh = (needed_rows([0, 1, 0], FULL=[6]) for _ in range(2))
    drawn = Drawn(4, num_groups=2, is_decode=True)
    drawn.begin(needed, CUDAGraphMode.FULL)
    for each in (drawn.views.ids, drawn.views.positions, drawn.views.seq_lens, *drawn.views.tables):
        each += 1
    listed = [drawn.begin(each, CUDAGraphMode.FULL) for each in (needed, fresh)]
    assert len(sent) == 2
    for read in (
        lambda each: each._ids_R,
        lambda each: each._positions_R,
        lambda each: each._seq_lens,
        lambda each: each._slots,
        lambda each: each._tables[0],
        lambda each: each._tables[1],
        lambda each: each._set_scales.__self__._scales_RK,
    ):
        assert torch.equal(read(needed), read(fresh))
    assert listed[0].query_start_loc.tolist() == listed[1].query_start_loc.tolist()
    # Slots have other requests, and others set scales between steps.
    drawn.scales_SK += 1
    scales_RK = needed._set_scales.__self__._scales_RK
    scales_RK.fill_(torch.nan)
    drawn.begin(needed, CUDAGraphMode.FULL)
    assert len(sent) == 2
    first = np.flatnonzero(drawn.weighs_BM[:, 0])
    own = drawn.scales_SK[torch.from_numpy(drawn.request_slots[first])]
    assert torch.equal(scales_RK[: len(first)], own)
    assert scales_RK[: int(drawn.weighs_BM.sum())].isfinite().all()
    drawn.weighs_BM = ~drawn.weighs_BM | (np.arange(3) == 1)
    drawn.begin(needed, CUDAGraphMode.FULL)
    assert len(sent) == 3


def test_hidden_states_come_to_the_places_of_their_rows() -> None:
    from vllm.config import CUDAGraphMode

    drawn = Drawn(3, num_groups=1, is_decode=False)
    needed = needed_rows([0, 0, 0], PIECEWISE=[64])
    drawn.begin(needed, CUDAGraphMode.PIECEWISE)
    hidden_RD = torch.arange(2.0 * needed.num_rows).view(-1, 2)
    out_TMD = torch.zeros(MOST_TOKENS, 4, 2)[:, 1:]  # as slots beside each other are
    needed.spread(hidden_RD, out_TMD)
    weighs_TM = drawn.weighs_BM.repeat(drawn.lengths, axis=0)
    expected = torch.zeros(MOST_TOKENS, 3, 2)
    rows = iter(hidden_RD)
    for member in range(3):
        for token in np.flatnonzero(weighs_TM[:, member]):
            expected[token, member] = next(rows)
    assert torch.equal(out_TMD, expected)
    assert needed.are_all(len(weighs_TM)) == bool(drawn.weighs_BM.all())


def test_passes_have_the_graph_and_the_slots_of_their_rows() -> None:
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import (
        BatchDescriptor,
        ForwardContext,
        get_forward_context,
        override_forward_context,
    )

    drawn = Drawn(4, num_groups=1, is_decode=True)
    drawn.weighs_BM[:] = [[False, True, False]]
    needed = needed_rows([0, 0, 0], PIECEWISE=[1, 2, 8])
    drawn.begin(needed, CUDAGraphMode.PIECEWISE)
    step = ForwardContext(
        no_compile_layers={},
        attn_metadata={"a": 1},
        slot_mapping={"a": torch.zeros(8)},
        cudagraph_runtime_mode=CUDAGraphMode.PIECEWISE,
        batch_descriptor=BatchDescriptor(num_tokens=8),
    )
    with override_forward_context(step), needed.running_rows():
        inside = get_forward_context()
        assert inside.batch_descriptor == BatchDescriptor(num_tokens=needed.tokens_of_graph)
        assert needed.tokens_of_graph < 8
        assert {name: len(slots) for name, slots in inside.slot_mapping.items()} == {
            "a": needed.num_rows,
            "b": needed.num_rows,
        }
        assert inside.attn_metadata == {"a": 1}


def test_the_manager_replays_the_graph_that_the_step_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.config import CUDAGraphMode
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, ModelCudaGraphManager

    from prefmix.mixing.batch.graphs_v2 import choose_graphs_by_rows

    def desc(tokens: int) -> Any:
        return BatchExecutionDescriptor(CUDAGraphMode.FULL, tokens, tokens, 1)

    replayed: list[Any] = []

    def replay(self: Any, asked: Any) -> torch.Tensor:
        replayed.append(asked)
        return torch.zeros(asked.num_tokens, 3 * 2)

    monkeypatch.setattr(ModelCudaGraphManager, "capture", lambda self, *args: None)
    monkeypatch.setattr(ModelCudaGraphManager, "run_fullgraph", replay)
    choose_graphs_by_rows()
    choose_graphs_by_rows()
    pieces = {CUDAGraphMode.PIECEWISE: [desc(16), desc(4)]}
    manager = SimpleNamespace(graphs={desc(8): 0, desc(2): 0}, _capture_descs=pieces)
    needed = SimpleNamespace(tokens_of_graph=2, num_rows=6, forget=lambda: None)
    spread: list[Any] = []
    model = SimpleNamespace(
        weights=SimpleNamespace(needed=needed),
        spread_rows=lambda rows, own, tokens: spread.append((rows.shape, own, tokens)) or "out",
    )
    ModelCudaGraphManager.capture(manager, model, None)
    assert needed.graph_sizes == {
        CUDAGraphMode.FULL: [2, 8],
        CUDAGraphMode.PIECEWISE: [4, 16],
    }
    assert ModelCudaGraphManager.run_fullgraph(manager, desc(8)) == "out"
    assert (replayed, spread) == ([desc(2)], [((6, 2), needed, 8)])
    # Another model's step is the one that vLLM has found.
    other = SimpleNamespace(graphs={}, _capture_descs={})
    ModelCudaGraphManager.capture(other, SimpleNamespace(), None)
    assert ModelCudaGraphManager.run_fullgraph(other, desc(8)).shape == (8, 6)


def test_where_all_rows_run_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefmix.mixing.batch.graphs_v2 import why_all_rows

    def why(*, has_positions: bool = False, can_skip: bool = True, replicas: int = 1) -> str:
        model = SimpleNamespace(step=SimpleNamespace(can_skip=can_skip))
        parallel = SimpleNamespace(data_parallel_size=replicas)
        config = SimpleNamespace(parallel_config=parallel)
        return why_all_rows(model, config, has_positions=has_positions)

    assert why() == ""
    assert "positions" in why(has_positions=True)
    assert "cached blocks" in why(can_skip=False)
    assert "replicas" in why(replicas=2)
    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "1")
    assert "breakable" in why()
