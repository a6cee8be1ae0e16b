"""Cache blocks of requests whose members have prompts of their own.

With block size B, member m leaves out floor(s_m / B) blocks at the front of its table, because
attention begins with a whole block, and what remains of its shift, r_m = s_m mod B, is a lag: its
key at engine position i lies where the engine's would at i - r_m. So where a member lags,

- its part of block b is complete only once the engine has filled block b + 1, and depends on the
  tokens up to there. Such a block is named by the hash of block b + 1 and cached one block later.
  After a hit the members that lag write up to r_m rows once more, with equal values.
- a member looks back up to B - 1 places further than a window says, so windows keep one block more,
  and a hit needs one block more.

Source: vLLM 0.32's KVCacheManager and KVCacheCoordinator.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from prefmix.mixing.prompts.request_heads import RequestHeads

if TYPE_CHECKING:
    from vllm.v1.request import Request


class LaterHashes:
    """Names each block of a request by the hash of a later one."""

    def __init__(self, hasher: Any, num_later: int) -> None:
        """Args:
        hasher: vLLM's, which gives the hashes of blocks that a request does not have yet.
        num_later: how many blocks later the hash is from.
        """
        self._hasher = hasher
        self._num_later = num_later
        self._all: list[Any] = []

    def __call__(self, request: Request) -> list[Any]:
        """The names of blocks that the request has no names for yet."""
        known = len(request.block_hashes)
        if not known:
            self._all.clear()
        request.block_hashes, shown = self._all, request.block_hashes
        try:
            self._all.extend(self._hasher(request))
        finally:
            request.block_hashes = shown
        return self._all[known + self._num_later :]


class LaggingBlocks:
    """The blocks of a scheduler's requests, some of which have members that lag."""

    def __init__(self, scheduler: Any) -> None:
        """Args: scheduler: vLLM's, whose cache manager is changed in place."""
        groups = scheduler.kv_cache_config.kv_cache_groups
        self._block_size = max((each.kv_cache_spec.block_size for each in groups), default=1)
        self._hash_block_size = scheduler.hash_block_size
        coordinator = scheduler.kv_cache_manager.coordinator
        cache_blocks, find = coordinator.cache_blocks, coordinator.find_longest_cache_hit

        def cache_complete_blocks(request: Request, num_tokens: int) -> None:
            if isinstance(request._block_hasher, LaterHashes):
                num_tokens = max(0, num_tokens - self._block_size)
            cache_blocks(request, num_tokens)

        def find_among_known(block_hashes: Any, max_length: int) -> Any:
            # Windows are looked for from the end, where a request that lags has no name yet.
            return find(block_hashes, min(max_length, len(block_hashes) * self._hash_block_size))

        coordinator.cache_blocks = cache_complete_blocks
        coordinator.find_longest_cache_hit = find_among_known

    def name(self, request: Request, heads: RequestHeads) -> None:
        """Makes a new request's blocks have names that are right for all members."""
        lags = any(shift % self._block_size for shift in heads.shifts_M)
        if lags and request._block_hasher is not None:
            num_later = self._block_size // self._hash_block_size
            request._block_hasher = LaterHashes(request._block_hasher, num_later)


def keep_windows_longer() -> None:
    """Makes vLLM keep, and ask of a prefix, one block more than an attention window says. May run
    repeatedly, in a worker before the caches are made."""
    from vllm.model_executor.layers.attention import Attention

    original = Attention.get_kv_cache_spec
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def get_kv_cache_spec(self: Any, vllm_config: Any) -> Any:
        spec = original(self, vllm_config)
        window = getattr(spec, "sliding_window", None)
        if window is None or self.sliding_window is None:
            return spec
        block_size = vllm_config.cache_config.block_size
        return dataclasses.replace(spec, sliding_window=window + block_size)

    Attention.get_kv_cache_spec = get_kv_cache_spec
