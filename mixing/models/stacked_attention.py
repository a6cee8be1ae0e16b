"""Rows of several members in one pass: which they are, and attention that keeps them apart.

Each attention layer of the base becomes one a member, with a KV cache of its own; between them the
members' rows are stacked (prefmix.mixing.models.shared_trunk). vLLM 0.32 cuts all caches from one
piece of memory, layer by layer on a CPU: there the caches of a layer's members are one cache with
more blocks, in which attention finds each member's requests as so many further requests.

Shapes: T tokens, n running members, R rows of the stack, K adapters.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context, override_forward_context
from vllm.model_executor.layers.attention import Attention

from prefmix.mixing.checkpoints.lora import AdapterError
from prefmix.mixing.models.attention_metadata import Part, metadata_builder, metadata_of
from prefmix.mixing.models.loading import member_prefix


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
        self.layers: Any = nn.ModuleList(layers)
        self.stack = stack
        self.joined: Any
        # Neither a part of the model nor a layer that vLLM would make a cache for.
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


class JoinedAttention:
    """One attention a layer for all members' rows, any number of them. On a CPU only."""

    def __init__(self, stacked: Sequence[StackedAttention], vllm_config: VllmConfig) -> None:
        self._stacked = stacked
        self._vllm_config = vllm_config
        self._layers = {each.joined.layer_name: each.joined for each in stacked}
        self._groups: list[_Alike] | None = None

    @contextmanager
    def running(
        self, members: Sequence[int], tokens: Sequence[torch.Tensor] | None
    ) -> Iterator[None]:
        """Inside, attention expects the rows of these members, one after the other.

        Args:
          tokens: by running member int64 [R_m], those of the step's tokens that it runs; None: all.
        """
        context = get_forward_context()
        layers = {**context.no_compile_layers, **self._layers}
        if not context.attn_metadata:  # profiling, warm-up
            with override_forward_context(replace(context, no_compile_layers=layers)):
                yield
            return
        if self._groups is None:
            self._groups = self._join_caches(context.attn_metadata)
        metadata, slots = {}, {}
        for group in self._groups:
            parts = [
                Part(
                    context.attn_metadata[group.names[member]],
                    None if tokens is None else tokens[place],
                    group.first_blocks[member],
                )
                for place, member in enumerate(members)
            ]
            together = metadata_of(parts, group.builder)
            metadata.update(dict.fromkeys(group.joined, together))
            slots.update(dict.fromkeys(group.joined, together.slot_mapping))
        joined = replace(
            context, attn_metadata=metadata, slot_mapping=slots, no_compile_layers=layers
        )
        with override_forward_context(joined):
            yield

    def _join_caches(self, metadata: Mapping[str, Any]) -> list[_Alike]:
        """Gives each joined layer its members' caches as one; layers with the same place in the
        same metadata are of one group."""
        alike: dict[Any, list[StackedAttention]] = {}
        for each in self._stacked:
            caches = [layer.kv_cache for layer in each.layers]
            cache, first_blocks = join_caches(caches)
            each.joined.__dict__.update(
                {**each.layers[0].__dict__, "layer_name": each.joined.layer_name},
                kv_cache=cache,
            )
            steps = tuple(id(metadata[layer.layer_name]) for layer in each.layers)
            alike.setdefault((steps, tuple(first_blocks)), []).append(each)
        return [
            _Alike(
                joined=[each.joined.layer_name for each in group],
                names=[layer.layer_name for layer in group[0].layers],
                first_blocks=first_blocks,
                builder=metadata_builder([each.layers[0] for each in group], self._vllm_config),
            )
            for (_, first_blocks), group in alike.items()
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Alike:
    """Joined layers that one metadata serves."""

    joined: list[str]
    names: list[str]
    """By member, the layer whose metadata tells where its requests are."""
    first_blocks: Sequence[int]
    """By member."""
    builder: Any


def join_caches(caches: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """One cache that has the blocks of all, and where in it the blocks of each begin.

    Args:
      caches: [blocks, ...] each, alike, in one piece of memory and whole blocks apart.
    Raises: ValueError if they lie otherwise.
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
    """Puts a StackedAttention in the place of each attention layer.

    Returns: those.
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
