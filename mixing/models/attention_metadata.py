"""Attention metadata for passes over some of a step's tokens, or over several members' caches.

vLLM's attention sees a step as a list of requests: the number of tokens of each, its length so far
and its blocks in the KV cache. A member that leaves requests out has a shorter list. Several
members with one joined cache have a longer list, with each member's requests in its own blocks. The
backend's own builder makes the metadata from the list. On a CPU only.

Shapes: T tokens and B requests of a step, of which a part has T_p and B_p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import CommonAttentionMetadata


@dataclass(frozen=True, slots=True)
class Part:
    """Requests of a step in one member's cache."""

    step: Any
    """The CPUAttentionMetadata of the whole step for this cache."""
    tokens: torch.Tensor | None = None
    """int64 [T_p], ascending: all tokens of the part's requests; None for all requests."""
    first_block: int = 0
    """Index of the member's first block in the cache that attention gets."""
    shifts_B: np.ndarray | None = None
    """int64, the member's shift in each request (prefmix.mixing.prompts.request_heads); then
    `tokens` are those that it has rows for. None if all members read the same."""


def metadata_of(parts: Sequence[Part], builder: Any) -> Any:
    """The metadata of a pass whose rows are the parts' tokens, one part after the other.

    Args:
      builder: made by `metadata_builder`.
    Returns: CPUAttentionMetadata of T_1 + ... + T_p tokens.
    """
    block_size = builder.kv_cache_spec.block_size
    lengths, seq_lens, tables, slots = [], [], [], []
    for part in parts:
        step = part.step
        if part.shifts_B is not None:
            own = _shifted(part, block_size)
            lengths.append(own.lengths_B)
            seq_lens.append(own.seq_lens_B)
            tables.append(own.table_BW + part.first_block)
            slots.append(own.slots_T + part.first_block * block_size)
            continue
        own_lengths_B, own_slots_T = step.query_start_loc.diff(), step.slot_mapping
        requests: Any = slice(None)
        if part.tokens is not None:
            is_run_T = torch.zeros(step.num_actual_tokens + 1, dtype=torch.bool)
            is_run_T[part.tokens] = True
            is_run_B = is_run_T[step.query_start_loc[:-1].long()] & (own_lengths_B > 0)
            requests = is_run_B.nonzero()[:, 0]
            own_slots_T = own_slots_T[part.tokens]
        lengths.append(own_lengths_B[requests])
        seq_lens.append(step.seq_lens[requests])
        tables.append(step.block_table[requests] + part.first_block)
        shifted_T = own_slots_T + part.first_block * block_size
        slots.append(torch.where(own_slots_T < 0, own_slots_T, shifted_T))  # -1: not stored
    lengths_B, slots_T = torch.cat(lengths), torch.cat(slots)
    starts = torch.zeros(len(lengths_B) + 1, dtype=torch.int32)
    torch.cumsum(lengths_B, 0, out=starts[1:])
    return builder.build(
        0,
        CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts,
            seq_lens=torch.cat(seq_lens),
            num_reqs=len(lengths_B),
            num_actual_tokens=len(slots_T),
            max_query_len=max(part.step.max_query_len for part in parts),
            max_seq_len=max(part.step.max_seq_len for part in parts),
            block_table_tensor=torch.cat(tables),
            slot_mapping=slots_T,
            causal=parts[0].step.causal,
        ),
    )


class _Shifted(NamedTuple):
    """The part of a member whose prompts are shorter than the engine's."""

    lengths_B: torch.Tensor
    seq_lens_B: torch.Tensor
    table_BW: torch.Tensor
    slots_T: torch.Tensor


def _shifted(part: Part, block_size: int) -> _Shifted:
    """Moves a member's requests to the front of its tables, as far as whole blocks allow
    (prefmix.mixing.prompts.cached_blocks). In numpy, whose calls on a few numbers take a fraction
    of torch's time."""
    step, shifts_B = part.step, part.shifts_B
    assert part.tokens is not None
    assert shifts_B is not None
    tokens, starts = part.tokens.numpy(), step.query_start_loc.numpy()
    lengths_B, table_BW = np.diff(starts), step.block_table.numpy()
    num_requests = len(lengths_B)
    seq_lens_B = step.seq_lens.numpy()[:num_requests]
    rows_T = np.repeat(np.arange(num_requests), lengths_B)[tokens]
    first_B = seq_lens_B - lengths_B - starts[:-1]
    places_T = (first_B - shifts_B % block_size)[rows_T] + tokens
    blocks_T = table_BW[rows_T, places_T // block_size].astype(np.int64)
    own_lengths_B = np.bincount(rows_T, minlength=num_requests)
    requests = np.flatnonzero(own_lengths_B)
    width = table_BW.shape[1]
    left_out_B1 = (shifts_B // block_size)[requests, None]
    columns_BW = np.minimum(np.arange(width) + left_out_B1, width - 1)
    own_lens_B = (seq_lens_B - shifts_B)[requests]
    return _Shifted(
        torch.from_numpy(own_lengths_B[requests].astype(np.int32)),
        torch.from_numpy(own_lens_B.astype(seq_lens_B.dtype)),
        torch.from_numpy(np.take_along_axis(table_BW[requests], columns_BW, axis=1)),
        torch.from_numpy(blocks_T * block_size + places_T % block_size),
    )


def metadata_builder(layers: Sequence[Any], vllm_config: VllmConfig) -> Any:
    """A builder like the runner's own, for attention layers of one kind that have their caches."""
    spec = layers[0].get_kv_cache_spec(vllm_config)
    block_size = layers[0].kv_cache.shape[2]  # [blocks, heads, block size, 2 * head size]
    builder = layers[0].attn_backend.get_builder_cls()
    names = [layer.layer_name for layer in layers]
    return builder(
        spec.copy_with_new_block_size(block_size), names, vllm_config, torch.device("cpu")
    )
