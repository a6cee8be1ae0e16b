"""Rows of several members in one pass: which they are, and attention that keeps them apart.

Each attention layer of the base becomes one a member, with a KV cache of its own; between them the
members' rows are stacked (mixing.trunk).
Shapes: T tokens, n running members, R rows of the stack, K adapters.
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

    def run(
        self, members: Sequence[int], tokens: Sequence[torch.Tensor] | None = None, *, of: int = 0
    ) -> None:
        """The next pass runs these members, in this order.

        Args:
          tokens: int64 [R_m], which of the step's tokens each of them runs; None: each runs all.
          of: T; only with `tokens`.
        """
        self.members = list(members)
        self.tokens = tokens
        self.num_tokens = of
        self.owners = torch.eye(self.num_members, self.num_adapters, dtype=torch.bool)[self.members]
        """bool on the CPU: whose rows belong to which adapter, [n, K]; with `tokens` [R, K]."""
        if tokens is not None:
            lengths = torch.tensor([len(each) for each in tokens])
            self.owners = self.owners.repeat_interleave(lengths, dim=0)

    def split(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Each running member's part [R_m, ...] of [R, ...]."""
        if self.tokens is None:
            length = rows.shape[0] // len(self.members)
            return [rows.narrow(0, place * length, length) for place in range(len(self.members))]
        return torch.split(rows, [len(each) for each in self.tokens])

    def spread(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Each running member's part of [R, ...] put where its tokens are: [T, ...], else zero."""
        assert self.tokens is not None
        shape = (self.num_tokens, *rows.shape[1:])
        parts = zip(self.tokens, self.split(rows), strict=True)
        return [rows.new_zeros(shape).index_copy_(0, tokens, part) for tokens, part in parts]

    def gather(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The rows [R, ...] of what each running member made of all tokens, [T, ...]."""
        assert self.tokens is not None
        return torch.cat([each[tokens] for each, tokens in zip(outputs, self.tokens, strict=True)])

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
    """Hands each member's rows to that member's attention.

    Attention only knows the whole step: it gets zeros for the tokens that a member does not run,
    and what it makes of them is dropped. Nobody reads their places in its KV cache.
    """

    def __init__(self, layers: Sequence[Attention], stack: Stack) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.stack = stack

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any
    ) -> torch.Tensor:
        """Args: query, key, value: [R, ...]. Returns: [R, heads * head size]."""
        is_whole = self.stack.tokens is None
        cut = self.stack.split if is_whole else self.stack.spread
        missing = [None] * len(self.stack.members)
        parts = [missing if rows is None else cut(rows) for rows in (query, key, value)]
        outputs = [
            self.layers[member](*inputs, *args)
            for member, *inputs in zip(self.stack.members, *parts, strict=True)
        ]
        return torch.cat(outputs) if is_whole else self.stack.gather(outputs)


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
