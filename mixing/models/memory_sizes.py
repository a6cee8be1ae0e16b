"""Memory that each member of a loaded mixture takes on one rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from prefmix.mixing.models.loading import split_member_name


def parameter_bytes(members: Sequence[nn.Module]) -> list[int]:
    """Bytes of parameters: per member what only it uses, then what several members use."""
    users: dict[int, set[int]] = {}
    sizes: dict[int, int] = {}
    for index, member in enumerate(members):
        for parameter in member.parameters():
            storage = parameter.untyped_storage()
            users.setdefault(storage.data_ptr(), set()).add(index)
            sizes[storage.data_ptr()] = storage.nbytes()
    by_member = [0] * (len(members) + 1)
    for key, indices in users.items():
        by_member[indices.pop() if len(indices) == 1 else -1] += sizes[key]
    return by_member


def kv_bytes_per_token(model: Any, vllm_config: Any) -> list[int]:
    """Per member, the bytes of KV cache that one token takes."""
    totals = [0] * model.spec.num_members
    for name, layer in vllm_config.compilation_config.static_forward_context.items():
        if not isinstance(layer, AttentionLayerBase):
            continue
        spec = layer.get_kv_cache_spec(vllm_config)
        if spec is not None:
            totals[split_member_name(name)[0]] += spec.page_size_bytes // spec.block_size
    return totals
