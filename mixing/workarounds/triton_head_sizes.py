"""Gives Triton's attention room for the heads of the layers that it serves.

The defect: attention in Triton (vLLM 0.32) keeps partial results of the number and size of heads
that the engine's one model has. Policies of other sizes beside a first one of smaller heads write
behind that memory. GPUs take this attention for float32, for FP8 keys before Hopper, and where
--attention-backend asks for it.
Delete this file when TritonAttentionMetadataBuilder takes both numbers from its `kv_cache_spec`.
"""

from __future__ import annotations

import copy
import functools
from typing import Any


def take_sizes_of_layers() -> None:
    """Makes vLLM's builders of Triton's attention take the sizes of their own layers. May run
    repeatedly."""
    from vllm.v1.attention.backends.triton_attn import TritonAttentionMetadataBuilder

    original = TritonAttentionMetadataBuilder.__init__
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def build(self: Any, kv_cache_spec: Any, names: Any, vllm_config: Any, device: Any) -> None:
        own = copy.copy(vllm_config)
        own.model_config = model = copy.copy(vllm_config.model_config)
        vars(model)["get_head_size"] = lambda: kv_cache_spec.head_size
        vars(model)["get_num_kv_heads"] = lambda _: kv_cache_spec.num_kv_heads
        original(self, kv_cache_spec, names, own, device)
        self.vllm_config = vllm_config

    TritonAttentionMetadataBuilder.__init__ = build
