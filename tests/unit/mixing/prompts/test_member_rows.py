"""Rows of a step by member: which tokens run, where they lie, and what attention sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from prefmix.mixing.prompts.member_rows import (
    MemberRows,
    MemberSteps,
    slots_of_members,
    steps_of_members,
    tables_of_members,
)

WIDTH = 12


@dataclass
class RandomStep:
    """Chunks of some requests, with padding behind tokens and requests."""

    first: list[int]
    lengths: list[int]
    shifts_MB: np.ndarray
    table_BW: torch.Tensor
    num_padding: int
    block_size: int

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths) + self.num_padding

    @property
    def starts(self) -> list[int]:
        return [0, *np.cumsum(self.lengths).tolist()]

    def steps(self) -> MemberSteps:
        ends = [first + length for first, length in zip(self.first, self.lengths, strict=True)]
        seq_lens = [end if length else 0 for end, length in zip(ends, self.lengths, strict=True)]
        return steps_of_members(
            torch.tensor(self.starts, dtype=torch.int32),
            torch.tensor(seq_lens, dtype=torch.int32),
            torch.from_numpy(self.shifts_MB),
            num_tokens=self.num_tokens,
        )

    def engine_slots(self) -> torch.Tensor:
        slots = [
            int(self.table_BW[row, at // self.block_size]) * self.block_size + at % self.block_size
            for row, (first, length) in enumerate(zip(self.first, self.lengths, strict=True))
            for at in range(first, first + length)
        ]
        return torch.tensor(slots + [-1] * self.num_padding)


def random_step(seed: int) -> RandomStep:
    rng = np.random.default_rng(seed)
    num_requests, num_members = int(rng.integers(1, 7)), int(rng.integers(1, 4))
    block_size = int(rng.choice([4, 8]))
    shifts = rng.integers(0, 20, size=(num_members, num_requests)).astype(np.int32)
    shifts *= rng.integers(0, 2, size=shifts.shape, dtype=np.int32)
    lengths = rng.integers(1, 14, size=num_requests)
    if rng.random() < 0.3:  # all draw a token
        lengths[:] = 1
    first = rng.integers(0, 30, size=num_requests)
    if rng.random() < 0.3:  # requests that pad a graph
        lengths[-1] = first[-1] = 0
        shifts[:, -1] = 0
    table = rng.permutation(np.arange(1, num_requests * WIDTH + 1)).reshape(num_requests, WIDTH)
    return RandomStep(
        first=first.tolist(),
        lengths=lengths.tolist(),
        shifts_MB=shifts,
        table_BW=torch.from_numpy(table).to(torch.int32),
        num_padding=int(rng.integers(0, 5)),
        block_size=block_size,
    )


@pytest.mark.parametrize("seed", range(200))
def test_each_member_runs_its_own_tokens_and_stores_them_at_its_own_places(seed: int) -> None:
    step = random_step(seed)
    found, size = step.steps(), step.block_size
    shifts_MB = torch.from_numpy(step.shifts_MB)
    tables = tables_of_members(step.table_BW, shifts_MB, block_size=size)
    slots = slots_of_members(found, shifts_MB, step.table_BW, step.engine_slots(), block_size=size)
    for member, shifts in enumerate(step.shifts_MB.tolist()):
        row, starts = 0, [0]
        for request, shift in enumerate(shifts):
            first, length = step.first[request], step.lengths[request]
            begin = min(max(first, shift), first + length - 1) if length else first
            for at in range(begin, first + length):
                token = step.starts[request] + at - first
                assert found.source_MT[member, row] == token
                assert found.destination_MT[member, token] == row
                assert found.positions_MT[member, row] == max(at - shift, 0)
                if at >= shift:
                    # Attention finds a key by the member's own position in the member's table.
                    own = at - shift
                    block = int(tables[member, request, own // size])
                    assert slots[member, row] == block * size + own % size
                else:
                    assert slots[member, row] == -1
                row += 1
            starts.append(row)
            own_length = max(first + length - shift, 1) if length else 0
            assert found.seq_lens_MB[member, request] == own_length
        assert found.starts[member].tolist() == starts
        assert (slots[member, row:] == -1).all()
        assert (found.positions_MT[member, row:] == 0).all()
        everything = found.source_MT[member].sort().values
        assert everything.tolist() == list(range(step.num_tokens))


def test_steps_of_one_token_a_request_have_the_same_rows_for_every_member() -> None:
    """Kernels for such steps take one row a request, also where a prompt has not begun."""
    shifts = torch.tensor([[0, 9, 0], [40, 0, 3]], dtype=torch.int32)
    starts = torch.arange(4, dtype=torch.int32)
    seq_lens_B = torch.tensor([5, 10, 30], dtype=torch.int32)
    found = steps_of_members(starts, seq_lens_B, shifts, num_tokens=3)
    assert found.starts.tolist() == [starts.tolist()] * 2
    assert found.source_MT.tolist() == [[0, 1, 2]] * 2
    assert found.seq_lens_MB.tolist() == [[5, 1, 30], [1, 10, 27]]


def test_rows_return_to_the_order_of_the_steps_tokens() -> None:
    found = random_step(7).steps()
    rows = MemberRows(
        found.source_MT.int(), found.positions_MT, found.source_MT, found.destination_MT
    )
    for member, source_T in enumerate(found.source_MT):
        hidden_TD = source_T[:, None].float()
        assert rows.in_order(member, hidden_TD)[:, 0].tolist() == list(range(len(source_T)))
