"""One attention a layer for the rows of all members of a shared trunk.

vLLM 0.32 cuts all KV caches from one piece of memory, in most layouts layer by layer. So the caches
of a layer's members are one cache with more blocks, in which attention finds each member's requests
as so many further requests.

On a CPU, under vLLM's V1 model runner, each pass has a list of requests of its own
(`JoinedAttention`). On a GPU the list is laid out before the pass
(prefmix.mixing.batch.joined_requests_v2), where `join_for_runner_v2` finds that layers can join.

Shapes: R_m rows of member m.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import ForwardContext, get_forward_context, override_forward_context
from vllm.logger import init_logger

from prefmix.mixing.models.attention_metadata import Part, metadata_builder, metadata_of
from prefmix.mixing.models.stacked_attention import StackedAttention, join_caches
from prefmix.mixing.prompts.step_heads import StepHeads

if TYPE_CHECKING:
    from prefmix.mixing.batch.joined_requests_v2 import JoinedLayers


logger = init_logger(f"vllm.{__name__}")

_JOINABLE = {"FLASH_ATTN", "TRITON_ATTN", "CPU_ATTN"}
"""Kinds of attention that take requests in any order, with all that they read in one list. Others
want steps of one token first, or plan on the host."""


class JoinedAttention:
    """The joined attention of all layers, for any number of rows of each member."""

    def __init__(self, stacked: Sequence[StackedAttention], vllm_config: VllmConfig) -> None:
        self.stacked = stacked
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
        own = {each.joined.layer_name: each.layers[member] for each in self.stacked}
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
        for each in self.stacked:
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


def join_for_runner_v2(
    stacked: Sequence[StackedAttention], kv_cache_config: Any, vllm_config: VllmConfig
) -> list[JoinedLayers]:
    """Makes the caches of each layer's members one cache, if the engine can attend to it.

    Args:
      kv_cache_config: vllm.v1.kv_cache_interface.KVCacheConfig of the caches that layers now have.
    Returns: layers by the list of requests that they read; none if each member has a call of its
      own, as the log then says.
    """
    from prefmix.mixing.batch.joined_requests_v2 import JoinedLayers

    for each in stacked:
        each.joined_blocks = None
    reason = _why_apart(stacked, vllm_config)
    found = [] if reason else [_blocks_of(each, kv_cache_config) for each in stacked]
    if not all(found):
        reason = "their caches do not lie whole blocks apart"
    if reason:
        logger.info("Attention is called once for each policy of the trunk: %s.", reason)
        return []
    alike: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for each, blocks in zip(stacked, found, strict=True):
        assert blocks is not None
        alike.setdefault(blocks, []).append(each.layers[0].layer_name)
    for each in stacked:
        each.join()
    logger.info("Attention is called once a layer for all policies of the trunk.")
    return [
        JoinedLayers(names, list(groups), list(first_blocks))
        for (groups, first_blocks), names in alike.items()
    ]


def _why_apart(stacked: Sequence[StackedAttention], vllm_config: VllmConfig) -> str:
    """The reason for which a trunk's attention cannot be joined; empty if it can."""
    names = {layer.attn_backend.get_name() for each in stacked for layer in each.layers}
    model = vllm_config.model_config
    reasons = [
        (names - _JOINABLE, f"{', '.join(sorted(names - _JOINABLE))} takes one policy's requests"),
        (vllm_config.kv_transfer_config, "a KV connector knows the caches layer by layer"),
        (
            vllm_config.compilation_config.cudagraph_mode.mixed_mode() == CUDAGraphMode.FULL,
            "full CUDA graphs of prompts have no place for the rest of a policy's rows",
        ),
        (model.rswa_window is not None, "its windows go by the requests of one policy"),
        (model.is_mm_prefix_lm, "its prefixes go by the requests of one policy"),
    ]
    return next((reason for holds, reason in reasons if holds), "")


def _blocks_of(
    each: StackedAttention, kv_cache_config: Any
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Per member the group of its cache blocks, and its first block in the joined cache; None if
    the caches cannot be joined."""
    groups = [
        next(
            index
            for index, group in enumerate(kv_cache_config.kv_cache_groups)
            if layer.layer_name in group.layer_names
        )
        for layer in each.layers
    ]
    sizes = {kv_cache_config.kv_cache_groups[group].kv_cache_spec.block_size for group in groups}
    try:
        _, first_blocks = join_caches([layer.kv_cache for layer in each.layers])
    except ValueError:
        return None
    # Kernels may cut the engine's blocks, of which tables have the numbers.
    parts, rest = divmod(max(sizes), each.layers[0].kv_cache.shape[2])
    if len(sizes) > 1 or rest or any(first % parts for first in first_blocks):
        return None
    return tuple(groups), tuple(first // parts for first in first_blocks)
