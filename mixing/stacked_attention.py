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
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.utils.torch_utils import direct_register_custom_op

from mixing.adapters import AdapterError
from mixing.loading import member_prefix


class Stack:
    """Which members' rows the pass under way holds. Read by every layer, set before each pass."""

    def __init__(self, *, num_members: int, num_adapters: int, max_rows: int = 0) -> None:
        """Args:
        max_rows: the most rows of a pass; 0 where all running members have equally many.
        """
        self.num_adapters = num_adapters
        self.takes_any_rows = max_rows > 0
        # One storage for every pass: a compiled graph keeps what it was traced with.
        self._owners = torch.zeros((max_rows, num_adapters), dtype=torch.bool, device="cpu")
        self.bounds = torch.zeros((num_adapters, 2), dtype=torch.int64, device="cpu")
        """Where any rows may run: first row and end of each adapter's rows."""
        self.run(range(num_members))

    def run(self, members: Sequence[int], lengths: Sequence[int] | None = None) -> None:
        """The next pass runs these members, in this order.

        Args:
          lengths: R_m, how many rows each of them has; None: equally many.
        """
        self.members = list(members)
        self.lengths = None if lengths is None else list(lengths)
        if self.lengths is None:
            return
        self._owners[: sum(self.lengths)] = False
        self.bounds.zero_()
        start = 0
        for member, length in zip(self.members, self.lengths, strict=True):
            if member < self.num_adapters:  # the reference is no adapter
                self._owners[start : start + length, member] = True
                self.bounds[member] = torch.tensor([start, start + length])
            start += length

    def owners(self, num_rows: int) -> torch.Tensor:
        """bool [R, K], where any rows may run: whose rows belong to which adapter."""
        return self._owners[:num_rows]

    def split(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Each running member's part [R_m, ...] of [R, ...]."""
        if self.lengths is None:
            length = rows.shape[0] // len(self.members)
            return [rows.narrow(0, place * length, length) for place in range(len(self.members))]
        return torch.split(rows, self.lengths)

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
        self._name = layers[0].layer_name
        object.__setattr__(layers[0], "_stacked", self)  # no submodule of its own submodule

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any
    ) -> torch.Tensor:
        """Args: query, key, value: [R, ...]. Returns: [R, heads * head size]."""
        if not self.stack.takes_any_rows:
            return torch.cat(self.attend(query, key, value, *args))
        assert not args, "an output shape of its own"
        first: Any = self.layers[0]
        out = query.new_empty((query.shape[0], first.num_heads * first.head_size_v))
        torch.ops.vllm.prefmix_stacked_attention(query, key, value, out, self._name)
        return out

    def attend(
        self, query: torch.Tensor, key: torch.Tensor | None, value: torch.Tensor | None, *args: Any
    ) -> list[torch.Tensor]:
        """What each running member's attention makes of its rows, [R_m, heads * head size]."""
        missing = [None] * len(self.stack.members)
        parts = [
            missing if rows is None else self.stack.split(rows) for rows in (query, key, value)
        ]
        return [
            self.layers[member](*inputs, *args)
            for member, *inputs in zip(self.stack.members, *parts, strict=True)
        ]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    output: torch.Tensor,
    layer_name: str,
) -> None:
    """The operator: compiled code sees one call, whichever members run and on however many rows."""
    stacked = get_forward_context().no_compile_layers[layer_name]._stacked
    torch.cat(stacked.attend(query, key, value), out=output)


direct_register_custom_op("prefmix_stacked_attention", _attend, mutates_args=["output"])


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
