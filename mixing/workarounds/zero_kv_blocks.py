"""Blocks of the KV cache begin as zeros, so that no request inherits another's NaN.

A text ends somewhere in its last block. Attention gives what lies behind the end no weight, but
0 times NaN is NaN: a policy that computed NaN for one text would spoil the next that gets the
block. This also concerns requests that gave the policy no weight, and those that were aborted.
vLLM 0.32 overwrites new blocks for models that need it; a mixture asks for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def begin_blocks_clean() -> None:
    """Has this process overwrite each cache block that a request newly gets. May run repeatedly.

    To be called in the engine's process and its workers', before the cache is made.
    """
    from vllm.v1.kv_cache_interface import KVCacheConfig

    KVCacheConfig.needs_kv_cache_zeroing = property(lambda _: True)


def cpu_cleaner(runner: Any) -> Callable[[Sequence[int]], None]:
    """V1's `_zero_block_ids` on a CPU, which leaves out caches of several shapes, for all caches.

    Args: runner: whose caches are made.
    """
    layers = runner.compilation_config.static_forward_context.values()
    tensors = (getattr(layer, "kv_cache", None) for layer in layers)
    num_blocks = runner.kv_cache_config.num_blocks
    caches = [
        # Attention may see a block as several smaller ones.
        each.view(num_blocks, -1, *each.shape[1:])
        for each in tensors
        if isinstance(each, torch.Tensor) and each.numel()
    ]

    def clean(block_ids: Sequence[int]) -> None:
        for cache in caches:
            cache[list(block_ids)] = 0

    return clean
