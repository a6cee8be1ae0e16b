"""Rows of several members in one pass: which they are, and attention that keeps them apart.

Each attention layer of the base becomes one a member, with a KV cache of its own; between them the
members' rows are stacked (mixing.trunk).
Shapes: T tokens, n running members, K adapters.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.attention import Attention

from mixing.adapters import AdapterError
from mixing.loading import member_prefix


class Stack:
    """Which members' rows the pass under way holds. Read by every layer, set before each pass."""

    def __init__(self, *, num_members: int, num_adapters: int) -> None:
        self.num_adapters = num_adapters
        self.num_members = num_members
        self.run(range(num_members))

    def run(self, members: Sequence[int]) -> None:
        """The next pass runs these members, in this order."""
        self.members = list(members)
        self.owners = torch.eye(self.num_members, self.num_adapters, dtype=torch.bool)[self.members]
        """bool [n, K] on the CPU: whose rows belong to which adapter."""

    @property
    def with_adapter(self) -> list[int]:
        """The running members that are adapters; they come before the reference."""
        return [member for member in self.members if member < self.num_adapters]


@contextmanager
def attention_per_member(stack: Stack) -> Iterator[None]:
    """While a base is built: each attention layer also builds one for every further member.

    Each is made and registered by vLLM's own constructor, so that it gets its own KV cache.
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
    """Hands each member's rows to that member's attention."""

    def __init__(self, layers: Sequence[Attention], stack: Stack) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.stack = stack

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any
    ) -> torch.Tensor:
        """Args: query, key, value: [n * T, ...]. Returns: [n * T, heads * head size]."""
        members = self.stack.members
        num_tokens = query.shape[0] // len(members)
        parts = [
            self.layers[member](
                *(
                    None if rows is None else rows.narrow(0, place * num_tokens, num_tokens)
                    for rows in (query, key, value)
                ),
                *args,
            )
            for place, member in enumerate(members)
        ]
        return torch.cat(parts)


def stack_attention(base: nn.Module, stack: Stack) -> None:
    """Puts a StackedAttention in the place of each attention layer.

    Raises: AdapterError for a base whose layers mix tokens in another way.
    """
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

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
                setattr(module, attribute, StackedAttention(layers, stack))
