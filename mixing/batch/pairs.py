"""The pairs of a step of a shared trunk: a member and a request that gives it weight.

The host knows them without asking the device, because a request's weights never change while it
runs. Members read a step in views of their own where policies have prompts of their own
(prefmix.mixing.batch.heads_v2), and else all of them read the engine's.

Shapes: M members, B requests of a step, P pairs, R rows of all of them, W blocks of a table's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.input_batch import InputBatch


class Views(NamedTuple):
    """A step as its members read it: one part a member, or one that all of them read."""

    ids: torch.Tensor
    """int32 by row."""
    positions: torch.Tensor
    """int64 by row."""
    seq_lens: torch.Tensor
    """int32 by request."""
    tables: Sequence[torch.Tensor]
    """Per group of cache blocks int32 [requests, W]."""
    slots: Sequence[torch.Tensor]
    """Per group int64 by row; negative where nothing is stored."""
    starts_MB: np.ndarray
    """The first row of each request in its member's part."""
    lengths_MB: np.ndarray
    """The rows of each request: its last tokens of the step."""
    longest_MB: np.ndarray
    """No less than the length of each request's text."""
    rows_apart: int = 0
    """Rows from the beginning of a member's part to that of the next one; 0 if all read one."""
    requests_apart: int = 0
    """Likewise of requests."""


def views_of_engine(
    batch: InputBatch, tables: Sequence[torch.Tensor], slots_GT: torch.Tensor, num_members: int
) -> Views:
    """The step as the engine has it, which is what all members read. Args: tables, slots_GT: per
    group of cache blocks."""

    def of_all(values_B: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values_B[: batch.num_reqs], (num_members, batch.num_reqs))

    starts = batch.query_start_loc_np[: batch.num_reqs + 1]
    return Views(
        ids=batch.input_ids,
        positions=batch.positions,
        seq_lens=batch.seq_lens,
        tables=tables,
        slots=list(slots_GT),
        starts_MB=of_all(starts),
        lengths_MB=of_all(np.diff(starts)),
        longest_MB=of_all(batch.seq_lens_cpu_upper_bound.numpy()),
    )


class Pairs(NamedTuple):
    """A step's pairs on the host, member by member."""

    members_P: np.ndarray
    requests_P: np.ndarray
    views_P: np.ndarray
    """The requests' places in the views."""
    lengths_P: np.ndarray
    """int32, the number of rows."""
    members_R: np.ndarray
    tokens_R: np.ndarray
    """By row, the token of the step."""
    views_R: np.ndarray
    """By row, its place in the views."""


def pairs_of(weighs_BM: np.ndarray, starts: np.ndarray, views: Views) -> Pairs:
    """Args:
    weighs_BM: true where a request gives a member weight.
    starts: int32 [B + 1], the first token of each request, then their number.
    """
    members_P, requests_P = np.nonzero(weighs_BM.T)
    lengths_P = views.lengths_MB[members_P, requests_P].astype(np.int32)
    first_rows_P = np.cumsum(lengths_P) - lengths_P
    starts_P = views.starts_MB[members_P, requests_P] + members_P * views.rows_apart
    first_tokens_P = starts[1:][requests_P] - lengths_P
    places_R = np.arange(lengths_P.sum()) - np.repeat(first_rows_P, lengths_P)
    return Pairs(
        members_P,
        requests_P,
        requests_P + members_P * views.requests_apart,
        lengths_P,
        np.repeat(members_P, lengths_P),
        np.repeat(first_tokens_P, lengths_P) + places_R,
        np.repeat(starts_P, lengths_P) + places_R,
    )
