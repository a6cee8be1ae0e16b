"""Rotates queries of several heads by torch where vLLM's own kernel for CPUs would not.

The defect: vLLM 0.32's `rotary_embedding` for CPUs takes queries and keys [tokens, heads, head
size] for such of one head. With `enforce_eager`, models that pass them so, such as those of
latent attention, are wrong by nats. Compiled models do not use the kernel.
Delete this file when `torch.ops._C.rotary_embedding` on a CPU does to [tokens, heads, head size]
what it does to [tokens, heads * head size].
"""

from __future__ import annotations

import functools
from typing import Any


def rotate_heads_by_torch() -> None:
    """Wraps the method that calls the kernel, in all models built later. May run repeatedly."""
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    forward_cpu = RotaryEmbedding.forward_cpu
    if hasattr(forward_cpu, "__wrapped__"):
        return

    @functools.wraps(forward_cpu)
    def forward(self: Any, positions: Any, query: Any, key: Any = None) -> Any:
        if query.dim() > 2 or (key is not None and key.dim() > 2):
            return self.forward_native(positions, query, key)
        return forward_cpu(self, positions, query, key)

    RotaryEmbedding.forward_cpu = forward
