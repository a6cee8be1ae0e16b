"""One attention a layer for the rows of all members of a shared trunk. On a CPU only.

vLLM 0.32 cuts all KV caches from one piece of memory, on a CPU layer by layer. So the caches of a
layer's members are one cache with more blocks, in which attention finds each member's requests as
so many further requests.

Shapes: R_m rows of member m.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.forward_context import ForwardContext, get_forward_context, override_forward_context

from prefmix.mixing.models.attention_metadata import Part, metadata_builder, metadata_of
from prefmix.mixing.models.stacked_attention import StackedAttention
from prefmix.mixing.prompts.step_heads import StepHeads


class JoinedAttention:
    """The joined attention of all layers, for any number of rows of each member."""

    def __init__(self, stacked: Sequence[StackedAttention], vllm_config: VllmConfig) -> None:
        self._stacked = stacked
        self._vllm_config = vllm_config
        self._layers = {each.joined.layer_name: each.joined for each in stacked}
        self._groups: list[_Group] | None = None

    @contextmanager
    def running(
        self,
        members: Sequence[int],
        tokens: Sequence[torch.Tensor] | None,
        heads: StepHeads | None = None,
    ) -> Iterator[None]:
        """Within this context attention expects the rows of these members, one after the other.

        Args:
          tokens: per running member int64 [R_m], the step's tokens that it runs; None for all.
          heads: the policies' own prompts; None if no request of the step has any.
        """
        context = get_forward_context()
        if len(members) == 1 and tokens is None:
            with override_forward_context(self._alone(members[0], context)):
                yield
            return
        layers = {**context.no_compile_layers, **self._layers}
        if not context.attn_metadata:  # profiling, warm-up
            warming = replace(context, no_compile_layers=layers, is_padding=None)
            with override_forward_context(warming):
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
                    None if heads is None else heads.shifts_BM[:, member],
                )
                for place, member in enumerate(members)
            ]
            together = metadata_of(parts, group.builder)
            metadata.update(dict.fromkeys(group.joined, together))
            slots.update(dict.fromkeys(group.joined, together.slot_mapping))
        joined = replace(
            context,
            attn_metadata=metadata,
            slot_mapping=slots,
            no_compile_layers=layers,
            is_padding=None,  # of other rows; on a CPU nothing is padded
        )
        with override_forward_context(joined):
            yield

    def _alone(self, member: int, context: ForwardContext) -> ForwardContext:
        """The step as vLLM has prepared it, with one member's own layers in the joined layers'
        places."""
        own = {each.joined.layer_name: each.layers[member] for each in self._stacked}
        layers = {**context.no_compile_layers, **own}
        metadata, slots = context.attn_metadata, context.slot_mapping
        if metadata:
            metadata = {name: metadata[layer.layer_name] for name, layer in own.items()}
            slots = {name: slots.get(layer.layer_name) for name, layer in own.items()}
        return replace(
            context, attn_metadata=metadata, slot_mapping=slots, no_compile_layers=layers
        )

    def _join_caches(self, metadata: Mapping[str, Any]) -> list[_Group]:
        """Gives each joined layer its members' caches as one cache; groups layers that can use the
        same metadata."""
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
            _Group(
                joined=[each.joined.layer_name for each in group],
                names=[layer.layer_name for layer in group[0].layers],
                first_blocks=first_blocks,
                builder=metadata_builder([each.layers[0] for each in group], self._vllm_config),
            )
            for (_, first_blocks), group in alike.items()
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """Joined layers that use the same metadata."""

    joined: list[str]
    """Names of the joined layers."""
    names: list[str]
    """Per member, a layer whose metadata has the blocks of the member's requests."""
    first_blocks: Sequence[int]
    """Per member, the index of its first block in the joined cache."""
    builder: Any


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
