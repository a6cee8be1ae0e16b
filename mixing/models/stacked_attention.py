"""Attention of a shared trunk: each layer of the base becomes one layer per member.

Each member's layer has a KV cache of its own. Between the attention layers the members' rows are
stacked (prefmix.mixing.models.shared_trunk). On a GPU each member's rows go to that member's layer;
on a CPU one joined layer takes the rows of all (prefmix.mixing.models.joined_attention).

Shapes: R rows of the stack.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.attention import Attention

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
    """Passes each member's rows to that member's attention."""

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
        self.joined: Any
        # Set past torch, so that it is no part of the model and vLLM makes no cache for it.
        object.__setattr__(self, "joined", copy.copy(layers[0]))
        self.joined.layer_name += ".joined"

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any
    ) -> torch.Tensor:
        """Args: query, key, value: [R, ...]. Returns: [R, heads * head size]."""
        if self.stack.takes_any_rows:
            together: torch.Tensor = self.joined(query, key, value, *args)
            return together
        missing = [None] * len(self.stack.members)
        parts = [
            missing if rows is None else self.stack.split(rows) for rows in (query, key, value)
        ]
        outputs = [
            self.layers[member](*inputs, *args)
            for member, *inputs in zip(self.stack.members, *parts, strict=True)
        ]
        return torch.cat(outputs)


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
