"""Attention of a shared trunk: each layer of the base becomes one layer per member.

Each member's layer has a KV cache of its own. Between the attention layers the members' rows are
stacked (prefmix.mixing.models.shared_trunk). Where the members' caches can be one cache, one call
takes the rows of all (prefmix.mixing.models.joined_attention).

Elsewhere each member's rows go to that member's layer, all of them in one operator: vLLM cuts a
compiled graph at attention, and K attentions one after the other would leave K - 1 pieces of a
layer between them that compute nothing, each a CUDA graph of its own.

Shapes: R rows of the stack, H heads, E size of a head.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.compilation.breakable_cudagraph import eager_break_during_capture
from vllm.config import CompilationConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention.attention import (
    get_attention_context,
    unified_attention_with_output,
    unified_kv_cache_update,
)
from vllm.utils.torch_utils import (
    LayerNameType,
    _encode_layer_name,
    _resolve_layer_name,
    direct_register_custom_op,
)

from prefmix.mixing.checkpoints.lora import AdapterError
from prefmix.mixing.models.loading import member_prefix
from prefmix.mixing.models.stack import Stack


@contextmanager
def attention_per_member(stack: Stack) -> Iterator[None]:
    """While a base is built in this context, each attention layer also builds one for every further
    member.

    vLLM's own constructor makes and registers each of them, so each gets its own KV cache.
    """
    original = Attention.__init__

    def build(self: Attention, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        bound = inspect.signature(original).bind(self, *args, **kwargs)
        given = {**bound.arguments, **bound.arguments.get("extra_impl_args", {})}
        for name in ("self", "extra_impl_args"):
            given.pop(name, None)
        further = []
        for member in stack.members[1:]:
            layer = Attention.__new__(type(self))
            own = {
                name: f"{member_prefix(member)}.{given[name]}"
                for name in ("prefix", "kv_sharing_target_layer_name")
                if given.get(name) is not None
            }
            original(layer, **{**given, **own})
            further.append(layer)
        object.__setattr__(self, "_further_members", further)

    Attention.__init__ = build
    try:
        yield
    finally:
        Attention.__init__ = original


class StackedAttention(nn.Module):
    """Passes each member's rows to that member's attention, or all rows to one."""

    def __init__(self, layers: Sequence[Attention], stack: Stack) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)
        self.stack = stack
        # Scales of a quantised cache: the base's loader looks for them here, and all members have
        # the same.
        for name, scale in list(layers[0].named_parameters(recurse=False)):
            self.register_parameter(name, scale)
            for layer in layers[1:]:
                layer.register_parameter(name, scale)
        self.joined_blocks: tuple[int, int] | None = None
        """The member whose cache lies first in the joined cache, and the number of blocks of the
        joined cache; None if each member has a call of its own. Under vLLM's V2 model runner."""
        self.joined: Any
        # Set past torch, so that it is no part of the model and vLLM makes no cache for it.
        object.__setattr__(self, "joined", copy.copy(layers[0]))
        self.joined.layer_name += ".joined"
        # The operator finds this module by the name of the base's own layer.
        object.__setattr__(layers[0], "_stacked", self)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        output_shape: Sequence[int] | None = None,
        output_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Like Attention.forward. Args: query, key, value: [R, ...]. Returns: [R, H * E]."""
        if self.stack.takes_any_rows:
            together: torch.Tensor = self.joined(query, key, value, output_shape, output_dtype)
            return together
        first = self.layers[0]
        shape = output_shape or (query.shape[0], first.num_heads * first.head_size_v)
        output = torch.empty(shape, dtype=output_dtype or query.dtype, device=query.device)
        if first.query_quant is not None:  # all members have the scales of the base
            query, _ = first.query_quant(query, first._q_scale)
        torch.ops.prefmix.stacked_attention(
            query.view(-1, first.num_heads, first.head_size),
            None if key is None else key.view(-1, first.num_kv_heads, first.head_size),
            None if value is None else value.view(-1, first.num_kv_heads, first.head_size_v),
            output.view(-1, first.num_heads, first.head_size_v),
            _encode_layer_name(first.layer_name),
        )
        return output

    def join(self) -> None:
        """Makes the caches that the members' layers now have one cache.

        It is not kept: vLLM gives up the caches of its profiling passes.
        """
        caches = [layer.kv_cache for layer in self.layers]
        cache, first_blocks = join_caches(caches)
        self.joined_blocks = (first_blocks.index(0), len(cache))

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        output: torch.Tensor,
    ) -> None:
        """Fills each running member's rows of the output [R, H, E]."""
        if self.joined_blocks is not None:
            _attend_jointly(self, query, key, value, output)
            return
        missing = [None] * len(self.stack.members)
        keys, values = (
            missing if rows is None else self.stack.split(rows) for rows in (key, value)
        )
        queries, outputs = self.stack.split(query), self.stack.split(output)
        for member, *rows, out in zip(
            self.stack.members, queries, keys, values, outputs, strict=True
        ):
            layer = self.layers[member]
            if (
                rows[1] is not None
                and rows[2] is not None
                and layer.kv_sharing_target_layer_name is None
                and not layer.attn_backend.forward_includes_kv_cache_update
            ):
                unified_kv_cache_update(rows[1], rows[2], layer.layer_name)
            unified_attention_with_output(*rows, out, layer.layer_name)


def join_caches(caches: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """One cache with the blocks of all, and the index in it of each cache's first block.

    Args:
      caches: [blocks, ...] each, of one shape, in one piece of memory and whole blocks apart.
    Raises: ValueError if the caches lie in memory otherwise.
    """
    first = min(caches, key=lambda cache: cache.data_ptr())
    block_bytes = first.stride(0) * first.itemsize
    first_blocks = []
    for cache in caches:
        blocks, rest = divmod(cache.data_ptr() - first.data_ptr(), block_bytes)
        kinds = {
            (each.shape, each.stride(), each.untyped_storage().data_ptr())
            for each in (cache, first)
        }
        if rest or len(kinds) > 1:
            raise ValueError(
                "the KV caches of a layer's policies are not whole blocks apart in one piece of "
                "memory, as vLLM 0.32 makes them on a CPU; use that version"
            )
        first_blocks.append(blocks)
    num_blocks = max(first_blocks) + len(first)
    return first.as_strided((num_blocks, *first.shape[1:]), first.stride()), first_blocks


def stack_attention(base: nn.Module, stack: Stack) -> list[StackedAttention]:
    """Replaces each attention layer by a StackedAttention.

    Returns: the new layers.
    Raises: AdapterError for a base whose layers mix tokens in another way.
    """
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    stacked = []
    for name, module in list(base.named_modules()):
        if isinstance(module, AttentionLayerBase) and type(module) is not Attention:
            raise AdapterError(
                f"the base {type(base).__name__} has a layer of kind {type(module).__name__} at "
                f"{name!r}; a shared trunk needs plain decoder attention in every layer: merge the "
                "adapters and serve full checkpoints with --policy"
            )
        for attribute, child in list(module.named_children()):
            if type(child) is Attention:
                layers = [child, *child.__dict__.pop("_further_members")]
                stacked.append(StackedAttention(layers, stack))
                setattr(module, attribute, stacked[-1])
    return stacked


def split_at_stacked_attention(config: CompilationConfig) -> None:
    """Makes vLLM cut compiled graphs where it would cut them at attention of its own."""
    if config.splitting_ops and _OPERATOR not in config.splitting_ops:
        config.splitting_ops = [*config.splitting_ops, _OPERATOR]


def _stacked_attention(
    query: torch.Tensor,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    output: torch.Tensor,
    layer_name: LayerNameType,
) -> None:
    layers = get_forward_context().no_compile_layers
    layers[_resolve_layer_name(layer_name)]._stacked.attend(query, key, value, output)


@eager_break_during_capture
def _attend_jointly(
    stacked: StackedAttention,
    query: torch.Tensor,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    output: torch.Tensor,
) -> None:
    """Fills all rows of the output [R, H, E] by one call."""
    assert stacked.joined_blocks is not None
    first, num_blocks = stacked.joined_blocks
    layer, own = stacked.layers[0], stacked.layers[first].kv_cache
    metadata, _, _, slots = get_attention_context(layer.layer_name)
    cache = own
    if metadata is not None:  # else in profiling, where caches may be none
        cache = own.as_strided((num_blocks, *own.shape[1:]), own.stride())
    if (
        key is not None
        and value is not None
        and slots is not None
        and layer.kv_sharing_target_layer_name is None
        and not layer.attn_backend.forward_includes_kv_cache_update
    ):
        layer.impl.do_kv_cache_update(layer, key, value, cache, slots)
    layer.impl.forward(layer, query, key, value, cache, metadata, output=output)


def _no_attention(*_: Any) -> None:
    """Tensors without memory need none."""


_OPERATOR = "prefmix::stacked_attention"
_LIBRARY = torch.library.Library("prefmix", "FRAGMENT")  # type: ignore[no-untyped-call]
direct_register_custom_op(
    "stacked_attention",
    _stacked_attention,
    mutates_args=["output"],
    fake_impl=_no_attention,
    target_lib=_LIBRARY,
)
