"""Fills new KV cache blocks with zeros, so that no request inherits another's NaN.

The defect: a text ends somewhere in its last block, and attention gives what lies behind the end
the weight 0. But 0 times NaN is NaN: a policy that computed NaN for one text spoils the next text
that gets the block, even if the first request was aborted or gave the policy no weight. vLLM 0.32
fills new blocks with zeros only for some models, and on a CPU not in caches of several shapes.
Delete this file when attention ignores what lies behind a text's end, or when vLLM has a setting
that fills the new blocks of every model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def zero_new_blocks() -> None:
    """Makes vLLM fill each cache block with zeros when a request gets it. May run repeatedly.

    Call it in the engine's process and in its workers, before the cache is made.
    """
    from vllm.v1.kv_cache_interface import KVCacheConfig

    KVCacheConfig.needs_kv_cache_zeroing = property(lambda _: True)


def cpu_block_zeroer(runner: Any) -> Callable[[Sequence[int]], None]:
    """A function that fills blocks with zeros in the caches of all layers.

    It replaces `_zero_block_ids` of the V1 runner on a CPU, which leaves out caches of several
    shapes. Args: runner: a runner whose caches exist.
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

    def zero(block_ids: Sequence[int]) -> None:
        for cache in caches:
            cache[list(block_ids)] = 0

    return zero
