"""Fills KV cache blocks with zeros where a member begins them. On a CPU.

No request may inherit another's NaN: prefmix.mixing.workarounds.zero_kv_blocks says why, and makes
vLLM fill the blocks elsewhere.

vLLM would clear all members' part of every block that a request gets. A request may need few
members, as one that mixes parameters does, and a block that a prompt fills has no rest.

Shapes: T tokens of a step, T_m those that member m runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from vllm.forward_context import ForwardContext, get_forward_context

from prefmix.mixing.models.loading import split_member_name


class BegunBlocks:
    """Clears the blocks that a step begins."""

    def __init__(self) -> None:
        self._groups: list[tuple[int, str, int, list[torch.Tensor]]] | None = None
        """(member, a layer, block size, caches of all its layers with the same slots); None until
        the first step."""

    def clear(self, tokens: Mapping[int, torch.Tensor | None], *, lag: bool = False) -> None:
        """Clears blocks before the members write to them.

        Args:
          tokens: by running member int64 [T_m], the tokens that it runs; None for all.
          lag: true if a member may fill a block later than the engine does
            (prefmix.mixing.prompts.cached_blocks): then all that begin are cleared.
        """
        context = get_forward_context()
        if not context.attn_metadata:  # profiling, warm-up
            return
        if self._groups is None:
            self._groups = list(_groups(context))
        found: dict[Any, list[int]] = {}
        for member, name, size, caches in self._groups:
            if member not in tokens:
                continue
            slots_T, own = context.slot_mapping[name], tokens[member]
            key = (slots_T.data_ptr(), size, id(own))
            if key not in found:
                own_slots_T = slots_T if own is None else slots_T[own]
                found[key] = unfinished_blocks(own_slots_T, size, all_begun=lag)
            for block in found[key]:
                for cache in caches:
                    cache[block].zero_()


def _groups(context: ForwardContext) -> Iterator[tuple[int, str, int, list[torch.Tensor]]]:
    alike: dict[tuple[int, int, int], tuple[str, list[torch.Tensor]]] = {}
    for name, slots in context.slot_mapping.items():
        cache = context.no_compile_layers[name].kv_cache
        if isinstance(cache, torch.Tensor):  # [blocks, ..., block size, width]
            key = (split_member_name(name)[0], slots.data_ptr(), cache.shape[-2])
            alike.setdefault(key, (name, []))[1].append(cache)
    for (member, _, size), (name, caches) in alike.items():
        yield member, name, size, caches


def unfinished_blocks(
    slots_T: torch.Tensor, block_size: int, *, all_begun: bool = False
) -> list[int]:
    """The blocks of which a step writes the first slot and not the last.

    Args:
      slots_T: int64, the slots that it writes; negative ones are not stored.
      all_begun: true for all of which it writes the first slot.
    """
    begun = slots_T[slots_T % block_size == 0]
    if not len(begun):
        return []
    first = set((begun // block_size).tolist())
    if all_begun:
        return sorted(first)
    ended = slots_T[slots_T % block_size == block_size - 1]
    return sorted(first - set((ended // block_size).tolist()))
