"""Each member runs the tokens of the requests that give it weight, and no others. On a CPU only.

Layers that look at a row alone are simply given fewer rows. Attention learns from metadata which
rows are whose: a member that leaves requests out gets metadata of its own requests, made by the
backend's own builder, for the length of one forward pass. Nobody ever reads what its KV cache holds
for the others: blocks are kept apart by the set of members that filled them (mixing.scheduling).

Shapes: T tokens, B requests, M members of a step; member m runs T_m tokens of B_m requests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context, override_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata

from mixing.loading import split_member_name


def takes_any_rows(device: torch.device) -> bool:
    """Whether a pass may hold any number of rows: where no CUDA graph replays it, and looking at
    the weights does not wait."""
    return device.type == "cpu"


class Sparing:
    """Cuts an engine's steps down to what each member has to run."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._vllm_config = vllm_config
        self._groups: list[tuple[int, list[str], Any]] | None = None
        """(member, names of its layers with the same metadata, what builds these), once known."""

    def tokens_of(
        self, weights_TM: torch.Tensor, members: Sequence[int]
    ) -> list[torch.Tensor] | None:
        """Per running member the int64 [T_m] tokens that give it weight; None if all run all."""
        if len(members) < 2 or not self._is_known(len(weights_TM)):
            return None
        is_wanted_Tn = weights_TM[:, members] != 0
        if is_wanted_Tn.all():
            return None
        return [column.nonzero()[:, 0] for column in is_wanted_Tn.unbind(dim=1)]

    @contextmanager
    def attending(
        self, members: Sequence[int], tokens: Sequence[torch.Tensor] | None
    ) -> Iterator[None]:
        """Inside, the attention layers of each member expect the rows of its `tokens`."""
        if tokens is None:
            yield
            return
        assert self._groups is not None
        context = get_forward_context()
        metadata, slots = dict(context.attn_metadata), dict(context.slot_mapping)
        parts = dict(zip(members, tokens, strict=True))
        for member, names, builder in self._groups:
            if member in parts:
                own = builder.build(0, _cut(metadata[names[0]], parts[member]))
                metadata.update(dict.fromkeys(names, own))
                slots.update(dict.fromkeys(names, own.slot_mapping))
        narrowed = dataclasses.replace(context, attn_metadata=metadata, slot_mapping=slots)
        with override_forward_context(narrowed):
            yield

    def _is_known(self, num_tokens: int) -> bool:
        """Whether the pass under way is a batch that can be cut."""
        context = get_forward_context()
        metadata = context.attn_metadata
        if not isinstance(metadata, dict) or not metadata:  # profiling, warm-up
            return False
        if self._groups is None:
            self._groups = self._find_groups(metadata, context.no_compile_layers)
        return bool(self._groups) and all(
            metadata[names[0]].num_actual_tokens == num_tokens
            and isinstance(metadata[names[0]].causal, bool)
            for _, names, _ in self._groups
        )

    def _find_groups(
        self, metadata: dict[str, Any], layers: dict[str, Any]
    ) -> list[tuple[int, list[str], Any]]:
        """Empty if any layer is no plain attention: then nothing is ever cut."""
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        alike: dict[tuple[int, int], list[str]] = {}
        for name, whole in metadata.items():
            layer = layers[name]
            if type(layer) is not Attention or layer.attn_backend is not CPUAttentionBackend:
                return []
            alike.setdefault((split_member_name(name)[0], id(whole)), []).append(name)
        return [
            (member, names, self._builder([layers[name] for name in names], names))
            for (member, _), names in alike.items()
        ]

    def _builder(self, layers: Sequence[Any], names: list[str]) -> Any:
        """A metadata builder like the runner's own, which serves the layers of all members."""
        specs = (layer.get_kv_cache_spec(self._vllm_config) for layer in layers)
        spec = next(spec for spec in specs if spec is not None)  # None: another layer's cache
        block_size = layers[0].kv_cache.shape[2]  # [blocks, heads, block size, 2 * head size]
        builder = layers[0].attn_backend.get_builder_cls()
        return builder(
            spec.copy_with_new_block_size(block_size),
            names,
            self._vllm_config,
            torch.device("cpu"),
        )


def _cut(whole: Any, tokens: torch.Tensor) -> CommonAttentionMetadata:
    """What the attention metadata of a step says of some requests, all of whose tokens are given.

    Args:
      whole: CPUAttentionMetadata of the step.
      tokens: int64 [T_m], ascending.
    """
    starts, ends = whole.query_start_loc[:-1], whole.query_start_loc[1:]
    is_run_T = torch.zeros(whole.num_actual_tokens + 1, dtype=torch.bool)
    is_run_T[tokens] = True
    requests = (is_run_T[starts.long()] & (ends > starts)).nonzero()[:, 0]
    own_starts = torch.zeros(len(requests) + 1, dtype=starts.dtype)
    torch.cumsum((ends - starts)[requests], 0, out=own_starts[1:])
    return CommonAttentionMetadata(
        query_start_loc=own_starts,
        query_start_loc_cpu=own_starts,
        seq_lens=whole.seq_lens[requests],
        num_reqs=len(requests),
        num_actual_tokens=len(tokens),
        max_query_len=whole.max_query_len,
        max_seq_len=whole.max_seq_len,
        block_table_tensor=whole.block_table[requests],
        slot_mapping=whole.slot_mapping[tokens],
        causal=whole.causal,
    )
