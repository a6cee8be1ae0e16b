"""One call of attention for all members' requests, against a call for each member.

A plain paged attention stands for the kernels. It takes starts, lengths and tables as they do.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from prefmix.mixing.prompts.member_rows import (
    lengths_of_members,
    slots_of_members,
    steps_of_members,
    tables_of_members,
)

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.input_batch import InputBatch

    from prefmix.mixing.batch.joined_requests_v2 import JoinedLayers, JoinedRequests, MembersStep

pytestmark = pytest.mark.usefixtures("vllm")

BLOCK, WIDTH, NUM_BLOCKS, SIZE = 4, 10, 40, 8
MOST_REQUESTS, MOST_TOKENS = 6, 64


def attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    starts: torch.Tensor,
    seq_lens: torch.Tensor,
    tables: torch.Tensor,
) -> torch.Tensor:
    """Causal attention of rows [R, E] to a cache [blocks, BLOCK, 2 * E]; NaN where it computes
    nothing."""
    out = torch.full_like(query, torch.nan)
    for request, length in enumerate(seq_lens.tolist()):
        start, end = starts[request : request + 2].tolist()
        places = torch.arange(length)
        pages = cache[tables[request, places // BLOCK].long(), places % BLOCK]
        keys, values = pages.split(query.shape[1], dim=-1)
        for row in range(start, end):
            seen = length - (end - 1 - row)
            if seen > 0:
                weights = torch.softmax(keys[:seen] @ query[row], dim=0)
                out[row] = weights @ values[:seen]
    return out


def store(cache: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """Writes rows to a cache [blocks, BLOCK, ...], those of negative slots to nowhere."""
    kept = slots >= 0
    blocks, places = slots[kept] // BLOCK, slots[kept] % BLOCK
    cache[blocks, places] = rows[kept]


@dataclass
class Drawn:
    """A step of the engine with `num_padding` tokens that nobody has asked for."""

    step: MembersStep
    num_tokens: int
    one_row_each: bool


def batch_of(lengths: np.ndarray, seq_lens: np.ndarray, num_padded: int) -> InputBatch:
    """The host's part of a member's step; requests of length 0 pad a graph."""
    from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

    buffers = InputBuffers(len(lengths), MOST_TOKENS, torch.device("cpu"))
    dummy = InputBatch.make_dummy(len(lengths), MOST_TOKENS, buffers)
    num_reqs = int((lengths > 0).sum())
    starts = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    return dataclasses.replace(
        dummy,
        num_reqs=num_reqs,
        num_tokens=int(starts[-1]),
        num_tokens_after_padding=num_padded,
        query_start_loc_np=starts,
        seq_lens_cpu_upper_bound=torch.from_numpy(seq_lens),
        is_prefilling_np=lengths[:num_reqs] > 1,
    )


def draw(seed: int, *, num_members: int, num_groups: int) -> Drawn:
    from prefmix.mixing.batch.joined_requests_v2 import MembersStep

    rng = np.random.default_rng(seed)
    num_requests = int(rng.integers(1, MOST_REQUESTS + 1))
    one_row_each, has_prompts = seed % 3 == 0, seed % 2 == 0
    lengths = rng.integers(1, 9, size=num_requests).astype(np.int32)
    shifts = np.zeros((num_members, num_requests), dtype=np.int32)
    if has_prompts:
        shifts = rng.integers(0, 12, size=shifts.shape).astype(np.int32)
    first = rng.integers(0, 20, size=num_requests).astype(np.int32)
    num_padding = int(rng.integers(0, 6))
    if one_row_each or seed % 5 == 0:  # all draw a token, with a graph for it or not
        lengths[:] = 1
    if one_row_each:
        num_padding = int(rng.integers(0, num_requests))
        lengths[num_requests - num_padding :] = 0
    seq_lens = np.where(lengths > 0, first + lengths, 0).astype(np.int32)
    shifts[:, lengths == 0] = 0
    starts = torch.zeros(num_requests + 1, dtype=torch.int32)
    starts[1:] = torch.from_numpy(lengths).cumsum(0)
    num_tokens = int(starts[-1]) + num_padding
    shifts_MB = torch.from_numpy(shifts)
    views = steps_of_members(starts, torch.from_numpy(seq_lens), shifts_MB, num_tokens=num_tokens)
    tables, slots = [], []
    for _ in range(num_groups):
        blocks = rng.permutation(np.arange(1, NUM_BLOCKS))[: WIDTH * 3].reshape(3, WIDTH)
        blocks = np.resize(blocks, (num_requests, WIDTH)) * (lengths > 0)[:, None]
        table = torch.from_numpy(blocks.astype(np.int32))
        places = views.positions_T.clamp(min=0)
        engine = table[views.requests_T, (places // BLOCK).clamp(max=WIDTH - 1)].long() * BLOCK
        engine += places % BLOCK
        engine[int(starts[-1]) :] = -1
        tables.append(tables_of_members(table, shifts_MB, block_size=BLOCK))
        slots.append(slots_of_members(views, shifts_MB, table, engine, block_size=BLOCK))
    own = lengths_of_members(
        torch.from_numpy(lengths), torch.from_numpy(seq_lens), shifts_MB
    ).numpy()
    batches = [batch_of(own[member], seq_lens, num_tokens) for member in range(num_members)]
    step = MembersStep(batches, views.starts, views.seq_lens_MB, tables, torch.stack(slots, dim=1))
    return Drawn(step, num_tokens, one_row_each)


def requests_of(layers: list[JoinedLayers], num_groups: int) -> JoinedRequests:
    from prefmix.mixing.batch.joined_requests_v2 import JoinedRequests

    return JoinedRequests(
        layers,
        block_sizes=[BLOCK] * num_groups,
        widths=[WIDTH] * num_groups,
        num_requests=MOST_REQUESTS,
        num_tokens=MOST_TOKENS,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("groups_M", [[0, 0, 0], [0, 1, 0]])
@pytest.mark.parametrize("seed", range(30))
def test_one_call_is_a_call_for_each_member(seed: int, groups_M: list[int]) -> None:
    """Bit for bit, with prompts of different lengths, padding, and graphs of one row a request."""
    from prefmix.mixing.batch.joined_requests_v2 import JoinedLayers
    from prefmix.mixing.models.stacked_attention import join_caches

    num_members, num_groups = len(groups_M), max(groups_M) + 1
    drawn = draw(seed, num_members=num_members, num_groups=num_groups)
    step, num_tokens = drawn.step, drawn.num_tokens
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn(5, NUM_BLOCKS, BLOCK, 2 * SIZE, generator=generator)
    rows = torch.randn(num_members, num_tokens, 3 * SIZE, generator=generator)
    queries, keys = rows.split([SIZE, 2 * SIZE], dim=-1)
    # Member after member in memory, with other layers between, and not in order.
    apart = memory.clone()
    together, first_blocks = join_caches([memory[3], memory[0], memory[4]])
    expected = []
    for member, group in enumerate(groups_M):
        own = apart[[3, 0, 4][member]]
        store(own, step.slots_MGT[member, group], keys[member])
        expected.append(
            attention(
                queries[member],
                own,
                step.starts[member],
                step.seq_lens_MB[member],
                step.tables[group][member],
            )
        )
    requests = requests_of([JoinedLayers(["a"], groups_M, first_blocks)], num_groups)
    listed = requests.fill(step, num_tokens=num_tokens, one_row_each=drawn.one_row_each)
    store(together, requests.slots(num_tokens)[0], keys.flatten(0, 1))
    found = attention(
        queries.flatten(0, 1),
        together,
        listed.query_start_loc,
        listed.seq_lens,
        requests.tables(listed.num_reqs)[0],
    ).view(num_members, num_tokens, SIZE)
    for member in range(num_members):
        num_run = int(step.starts[member, -1])
        assert torch.equal(found[member, :num_run], expected[member][:num_run])
        assert found[member, :num_run].isfinite().all()
    assert torch.equal(memory, apart)


@pytest.mark.parametrize("seed", range(30))
def test_the_list_has_every_row_once_and_the_host_knows_its_lengths(seed: int) -> None:
    from prefmix.mixing.batch.joined_requests_v2 import JoinedLayers

    num_members = 3
    drawn = draw(seed, num_members=num_members, num_groups=1)
    requests = requests_of([JoinedLayers(["a"], [0] * 3, [0, NUM_BLOCKS, 2 * NUM_BLOCKS])], 1)
    listed = requests.fill(drawn.step, num_tokens=drawn.num_tokens, one_row_each=drawn.one_row_each)
    starts = listed.query_start_loc
    assert (starts[0], starts[-1]) == (0, num_members * drawn.num_tokens)
    assert starts.tolist() == listed.query_start_loc_np.tolist()
    assert starts.diff().tolist() == listed.num_scheduled_tokens.tolist()
    assert len(listed.seq_lens) == listed.num_reqs == len(listed.seq_lens_cpu_upper_bound)
    assert (listed.seq_lens <= listed.seq_lens_cpu_upper_bound).all()
    # vLLM never gives a kernel a row without a key.
    assert (listed.seq_lens >= starts.diff()).all()
    rest = listed.seq_lens.view(num_members, -1)[:, drawn.step.seq_lens_MB.shape[1] :]
    table = requests.tables(listed.num_reqs)[0].view(num_members, -1, WIDTH)
    for member in range(num_members):
        used = -(-max(rest[member].tolist(), default=0) // BLOCK)
        blocks = table[member, drawn.step.seq_lens_MB.shape[1] :, :used]
        assert (blocks == member * NUM_BLOCKS).all(), "the block that no request has"
    assert len(listed.is_prefilling_np) == listed.num_reqs
    if starts.diff().max() == 1:
        # Kernels for such steps look at row r for request r, which sees a key at least.
        assert listed.num_reqs == num_members * drawn.num_tokens
        assert (listed.seq_lens >= 1).all()


def test_a_graph_finds_the_next_step_where_it_found_the_last() -> None:
    from prefmix.mixing.batch.joined_requests_v2 import JoinedLayers

    requests = requests_of([JoinedLayers(["a"], [0, 0], [0, NUM_BLOCKS])], 1)
    found = []
    for seed in (12, 18):  # two and five requests
        drawn = draw(seed, num_members=2, num_groups=1)
        assert drawn.one_row_each
        listed = requests.fill(drawn.step, num_tokens=drawn.num_tokens, one_row_each=True)
        tables, slots = requests.tables(listed.num_reqs), requests.slots(drawn.num_tokens)
        read = (listed.query_start_loc, listed.seq_lens, *tables, *slots)
        found.append([each.data_ptr() for each in read])
    assert found[0] == found[1]


def test_a_promised_longest_request_is_as_long_as_the_one_that_fills_up() -> None:
    """No kernel may be told less than there is."""
    from prefmix.mixing.batch.joined_requests_v2 import JoinedLayers

    drawn = draw(1, num_members=2, num_groups=1)
    promising = [dataclasses.replace(each, max_query_len=3) for each in drawn.step.batches]
    requests = requests_of([JoinedLayers(["a"], [0, 0], [0, NUM_BLOCKS])], 1)
    padded = torch.full((2, 1, MOST_TOKENS), -1)
    padded[:, :, : drawn.num_tokens] = drawn.step.slots_MGT
    step = drawn.step._replace(batches=promising, slots_MGT=padded)
    listed = requests.fill(step, num_tokens=MOST_TOKENS, one_row_each=False)
    assert listed.max_query_len == listed.num_scheduled_tokens.max() > 20
