"""Skips tokens: each member runs only the requests that give it weight. On a CPU only.

Layers that treat each row alone get fewer rows; attention gets fewer requests
(prefmix.mixing.models.attention_metadata). A member's KV cache has no valid entries for skipped
requests, and none are read: the scheduler keeps blocks apart by the set of members that filled them
(prefmix.mixing.engine.scheduler).

Shapes: T tokens, M members of a step, n of them running; member m runs T_m tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.forward_context import ForwardContext, get_forward_context, override_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from prefmix.mixing.models.attention_metadata import Part, metadata_builder, metadata_of
from prefmix.mixing.models.loading import split_member_name
from prefmix.mixing.prompts.step_heads import StepHeads


def takes_any_rows(device: torch.device) -> bool:
    """True if a pass may hold any number of rows: no CUDA graph replays it, and reading the weights
    does not wait."""
    return device.type == "cpu"


def is_plain_attention(layers: Iterable[Any]) -> bool:
    """True if all attention layers take the requests in the metadata as they are. Attention over
    chunks does not: its metadata has cut the requests up already."""
    return all(
        type(layer) is Attention for layer in layers if isinstance(layer, AttentionLayerBase)
    )


def tokens_of(weights_TM: torch.Tensor, members: Sequence[int]) -> list[torch.Tensor] | None:
    """Per running member the tokens that give it weight, int64 [T_m]; None if each member runs all
    tokens, as in profiling and warm-up passes."""
    metadata = get_forward_context().attn_metadata
    if len(members) < 2 or not metadata:
        return None
    num_actual = next(iter(metadata.values())).num_actual_tokens
    is_wanted_Tn = weights_TM[:num_actual, members] != 0
    if num_actual == len(weights_TM) and is_wanted_Tn.all():
        return None
    return [column.nonzero()[:, 0] for column in is_wanted_Tn.unbind(dim=1)]


class MemberAttention:
    """The attention layers of members that run one after the other, each on its own tokens."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._vllm_config = vllm_config
        self._groups: list[tuple[int, list[str], Any]] | None = None
        """(member, names of its layers with the same metadata, their builder); None until the first
        pass."""

    @contextmanager
    def running(
        self, tokens: dict[int, torch.Tensor], heads: StepHeads | None = None
    ) -> Iterator[None]:
        """Within this context each member's layers expect its own rows only.

        Args:
          tokens: by member int64 [T_m].
          heads: the policies' own prompts; None if no request of the step has any.
        """
        context = get_forward_context()
        if self._groups is None:
            self._groups = self._find_groups(context)
        metadata, slots = dict(context.attn_metadata), dict(context.slot_mapping)
        for member, names, builder in self._groups:
            if member in tokens:
                shifts_B = None if heads is None else heads.shifts_BM[:, member]
                part = Part(metadata[names[0]], tokens[member], shifts_B=shifts_B)
                own = metadata_of([part], builder)
                metadata.update(dict.fromkeys(names, own))
                slots.update(dict.fromkeys(names, own.slot_mapping))
        narrowed = dataclasses.replace(
            context,
            attn_metadata=metadata,
            slot_mapping=slots,
            is_padding=None,  # of other rows; on a CPU nothing is padded
        )
        with override_forward_context(narrowed):
            yield

    def _find_groups(self, context: ForwardContext) -> list[tuple[int, list[str], Any]]:
        alike: dict[tuple[int, int], list[str]] = {}
        for name, step in context.attn_metadata.items():
            alike.setdefault((split_member_name(name)[0], id(step)), []).append(name)
        layers = context.no_compile_layers
        return [
            (member, names, metadata_builder([layers[name] for name in names], self._vllm_config))
            for (member, _), names in alike.items()
        ]
