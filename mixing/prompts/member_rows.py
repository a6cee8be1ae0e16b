"""The rows of a step by member, in tensors of fixed shapes that stay on the device.

Each member has T rows: first its tokens of the step, request by request, then what it does not run:
tokens before its prompt begins (prefmix.mixing.prompts.request_heads) and padding. Attention sees
the first part as the member's requests; the rest is to it as padding. A member runs at least the
last token of each request, because kernels for steps with one token a request need one of each;
before the prompt begins that row sees one key and stores nothing.

No value is read back, so nothing waits and a CUDA graph may hold what follows.

Shapes: B requests (padded), T tokens (padded) of a step, M members, W blocks of a table's row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class MemberSteps(NamedTuple):
    """The members' views of a step."""

    starts: torch.Tensor
    """int32 [M, B + 1], the first row of each request, then the number of rows that are run."""
    seq_lens_MB: torch.Tensor
    """int32, the length of each request's text."""
    source_MT: torch.Tensor
    """int64, by row the token of the step."""
    destination_MT: torch.Tensor
    """int64, by token of the step the row."""
    positions_MT: torch.Tensor
    """int64, by row the member's own position; 0 in rows that are not run."""
    is_stored_MT: torch.Tensor
    """bool, by row: true if the cache keeps it."""
    requests_T: torch.Tensor
    """int64, by token of the step its request."""
    positions_T: torch.Tensor
    """int64, by token of the step its engine position."""


def steps_of_members(
    starts: torch.Tensor, seq_lens_B: torch.Tensor, shifts_MB: torch.Tensor, *, num_tokens: int
) -> MemberSteps:
    """Args:
    starts: int32 [B + 1], the engine's first token of each request, then their number.
    seq_lens_B: int32, the engine's; 0 for padding.
    shifts_MB: int32; 0 for padding.
    num_tokens: T.
    """
    own_lengths_MB = lengths_of_members(starts.diff(), seq_lens_B, shifts_MB)
    tokens_T = torch.arange(num_tokens, device=starts.device)
    requests_T = torch.searchsorted(starts[1:].contiguous(), tokens_T, right=True, out_int32=True)
    requests_T = requests_T.long().clamp_(max=len(seq_lens_B) - 1)
    begins_MT = (starts[1:] - own_lengths_MB)[:, requests_T]
    is_run_MT = (tokens_T >= begins_MT) & (tokens_T < starts[-1])
    order_MT = is_run_MT.long().cumsum(1)
    destination_MT = torch.where(is_run_MT, order_MT - 1, order_MT[:, -1:] + tokens_T - order_MT)
    source_MT = torch.empty_like(destination_MT)
    source_MT.scatter_(1, destination_MT, tokens_T.expand_as(destination_MT))
    positions_T = (seq_lens_B - starts[1:])[requests_T].long() + tokens_T
    own_positions_MT = positions_T - shifts_MB[:, requests_T]
    is_stored_MT = is_run_MT & (own_positions_MT >= 0)
    own_positions_MT = torch.where(is_stored_MT, own_positions_MT, 0)
    own_starts = torch.zeros((len(shifts_MB), len(starts)), dtype=torch.int32, device=starts.device)
    torch.cumsum(own_lengths_MB, 1, out=own_starts[:, 1:])
    return MemberSteps(
        starts=own_starts,
        seq_lens_MB=torch.maximum(seq_lens_B - shifts_MB, own_lengths_MB.clamp(max=1)),
        source_MT=source_MT,
        destination_MT=destination_MT,
        positions_MT=own_positions_MT.gather(1, source_MT),
        is_stored_MT=is_stored_MT.gather(1, source_MT),
        requests_T=requests_T,
        positions_T=positions_T,
    )


def lengths_of_members(
    lengths_B: torch.Tensor, seq_lens_B: torch.Tensor, shifts_MB: torch.Tensor
) -> torch.Tensor:
    """int32 [M, B], the rows that each member runs of each request.

    Args:
      lengths_B: int32, the tokens of the step.
      seq_lens_B, shifts_MB: as of `steps_of_members`.
    """
    own_MB = torch.minimum(lengths_B, seq_lens_B - shifts_MB)
    return torch.maximum(own_MB, lengths_B.clamp(max=1)).to(torch.int32)


def tables_of_members(
    table_BW: torch.Tensor, shifts_MB: torch.Tensor, *, block_size: int
) -> torch.Tensor:
    """int32 [M, B, W], the blocks of each member: whole ones are left out at the front
    (prefmix.mixing.prompts.cached_blocks)."""
    num_members, width = len(shifts_MB), table_BW.shape[1]
    columns_W = torch.arange(width, device=table_BW.device)
    columns_MBW = columns_W + (shifts_MB // block_size)[:, :, None]
    tables_MBW = table_BW.expand(num_members, -1, -1)
    return tables_MBW.gather(2, columns_MBW.clamp_(max=width - 1))


def slots_of_members(
    steps: MemberSteps,
    shifts_MB: torch.Tensor,
    table_BW: torch.Tensor,
    slots_T: torch.Tensor,
    *,
    block_size: int,
) -> torch.Tensor:
    """int64 [M, T], by row the slot of the member's key; -1 where none is stored.

    Args:
      table_BW, slots_T: the engine's.
    """
    requests_T = steps.requests_T
    lags_MT = (shifts_MB % block_size)[:, requests_T]
    places_MT = (steps.positions_T - lags_MT).clamp_(min=0)
    columns_MT = (places_MT // block_size).clamp_(max=table_BW.shape[1] - 1)
    blocks_MT = table_BW[requests_T.expand_as(columns_MT), columns_MT].long()
    own_slots_MT = torch.where(slots_T >= 0, blocks_MT * block_size + places_MT % block_size, -1)
    return torch.where(steps.is_stored_MT, own_slots_MT.gather(1, steps.source_MT), -1)


@dataclass(frozen=True, slots=True)
class MemberRows:
    """Tokens and positions that the members read in a step, and the places of their rows."""

    ids_MT: torch.Tensor
    """int32, by row."""
    positions_MT: torch.Tensor
    source_MT: torch.Tensor
    destination_MT: torch.Tensor

    def in_order(self, member: int, hidden_TD: torch.Tensor) -> torch.Tensor:
        """Rows of a member, by token of the step."""
        return hidden_TD.index_select(0, self.destination_MT[member])
