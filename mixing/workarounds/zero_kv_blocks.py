"""Fills new KV cache blocks with zeros, so that no request inherits another's NaN.

The defect: a text ends somewhere in its last block, and attention gives what lies behind the end
the weight 0. But 0 times NaN is NaN: a policy that computed NaN for one text spoils the next text
that gets the block, even if the first request was aborted or gave the policy no weight. vLLM 0.32
fills new blocks with zeros only for some models. On a CPU prefmix does so itself
(prefmix.mixing.models.begun_blocks).
Delete both files when attention ignores what lies behind a text's end, or this one when vLLM has a
setting that fills the new blocks of every model.
"""

from __future__ import annotations


def zero_new_blocks() -> None:
    """Makes vLLM fill each cache block with zeros when a request gets it, but on a CPU. May run
    repeatedly.

    Call it in the engine's process and in its workers, before the cache is made.
    """
    from vllm.platforms import current_platform
    from vllm.v1.kv_cache_interface import KVCacheConfig

    if not current_platform.is_cpu():
        KVCacheConfig.needs_kv_cache_zeroing = property(lambda _: True)
