"""`LogLinearMixtureForCausalLM`: M full checkpoints as one vLLM model.

Shapes: T tokens, N logits rows, M members, V vocabulary, D_m hidden width of member m.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.model_loader.weight_tying import maybe_retie_word_embeddings

from prefmix.mixing.kernels.mix_lm_head import mix_lm_head, takes_fused
from prefmix.mixing.models.base import MixtureModel, members_with_weight
from prefmix.mixing.models.lm_heads import PlainHead, hidden_width, plain_heads
from prefmix.mixing.models.loading import (
    MemberLoadError,
    build_member,
    load_member,
    member_prefix,
    member_vllm_config,
    secondary_sources,
    split_member_name,
)
from prefmix.mixing.models.memory_sizes import parameter_bytes
from prefmix.mixing.models.skipping import MemberAttention, is_plain_attention
from prefmix.mixing.parameters.deduplicate import deduplicate_layers
from prefmix.mixing.start_stages import announce_loading

logger = init_logger(f"vllm.{__name__}")


class LogLinearMixtureForCausalLM(MixtureModel):
    """The composite model. Built by vLLM; the members come from the config's mixture spec."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config)
        assert not prefix, "a mixture is a whole model, never a part of one"
        configs = [
            member_vllm_config(vllm_config, member, index=index)
            for index, member in enumerate(self.spec.members)
        ]
        self._model_configs = [config.model_config for config in configs]
        # A ModuleDict, not a ModuleList: vLLM wants exactly one number in a layer's name.
        self.members = nn.ModuleDict(
            {
                f"p{index}": build_member(config, self.spec.members[index], index=index)
                for index, config in enumerate(configs)
            }
        )
        self.hidden_sizes = [
            hidden_width(member, config)
            for member, config in zip(self._members, configs, strict=True)
        ]
        self._parameter_bytes: list[int] | None = None  # set after loading, before repacking
        self._attention = MemberAttention(vllm_config)
        self.secondary_weights = secondary_sources(self.spec)
        # Layers that vLLM knows by name, such as attention, belong to one member each, and so does
        # what they hold: latent attention keeps pointers to its projection.
        named = list(vllm_config.compilation_config.static_forward_context.values())
        self._own_layers = {layer for each in named for layer in each.modules()}
        is_plain = is_plain_attention(named)
        self.takes_any_rows &= is_plain
        if self.spec.has_prompts and not is_plain:
            raise MemberLoadError(
                "policies have prompts of their own where all layers have plain attention; some of "
                "these attend in chunks, compress their keys or keep a state: leave the prompts "
                "out"
            )

    @property
    def _members(self) -> list[Any]:
        return list(self.members.values())

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Part of vLLM's model interface. Members embed their own inputs."""
        return self._members[0].embed_input_ids(input_ids)

    def run_members(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        slots: Sequence[torch.Tensor],
        tokens: Sequence[torch.Tensor] | None,
        scales_TK: torch.Tensor,
    ) -> None:
        if tokens is not None:
            self._run_parts(input_ids, positions, slots, tokens)
            return
        rows = self.step.rows
        everyone = enumerate(zip(slots, self._members, self.step.active, strict=True))
        for index, (slot, member, active) in everyone:
            # Copied at once: with CUDA graphs the next member may reuse this one's output memory.
            if not active:
                slot.zero_()
            elif rows is None:
                slot.copy_(member(input_ids, positions))
            else:
                hidden = member(rows.ids_MT[index], rows.positions_MT[index])
                slot.copy_(rows.in_order(index, hidden))

    def _run_parts(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        slots: Sequence[torch.Tensor],
        tokens: Sequence[torch.Tensor],
    ) -> None:
        every = zip(self.step.members, tokens, strict=True)
        parts = {member: own for member, own in every if len(own)}
        for slot in slots:
            slot.zero_()
        with self._attention.running(parts, self.step.heads):
            for index, own in parts.items():
                hidden = self._members[index](*self.inputs_of(index, own, input_ids, positions))
                slots[index].index_copy_(0, own, hidden)

    @functools.cached_property
    def plain_heads(self) -> list[PlainHead] | None:
        """Every member's output matrix if one product can mix them all, or None.

        Always None on a CPU, where vLLM multiplies faster, by a repacked copy of the matrix.
        """
        if self.device.type == "cpu":
            return None
        return plain_heads(self._members, self.dtype)

    def mix(self, hidden: Sequence[torch.Tensor], weights_NM: torch.Tensor) -> torch.Tensor | None:
        if self.plain_heads is not None:
            return self._mix_heads(self.plain_heads, hidden, weights_NM)
        return self.mix_logits(self._logits_of(hidden, members_with_weight(weights_NM)), weights_NM)

    def _mix_heads(
        self, heads: Sequence[PlainHead], hidden: Sequence[torch.Tensor], weights_NM: torch.Tensor
    ) -> torch.Tensor | None:
        """Mixes by one product over all heads' rows on this rank, then one gather.

        Where nothing is gathered and products of their own are faster, their logits are read once:
        by the mixing, the row check and the statistics together.
        """
        if not heads[0].is_split and not takes_fused(weights_NM):
            logits: list[torch.Tensor | None] = []
            for head, hidden_ND, active in zip(heads, hidden, self.step.active, strict=True):
                product = hidden_ND @ head.weight_VD.T if active else None
                logits.append(self._without_padding(product))
            scale = [head.scale for head in heads]
            return self.mix_logits(logits, weights_NM, scale=None if set(scale) == {1.0} else scale)
        mixed = heads[0].gather(
            mix_lm_head(
                hidden,
                [head.weight_VD for head in heads],
                weights_NM,
                scale=[head.scale for head in heads],
            )
        )
        if mixed is None:
            return None
        return mixed[:, : self.vocab_size]

    def member_logits(self, hidden: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        return self._logits_of(hidden, self.step.active)

    def _logits_of(
        self, hidden: Sequence[torch.Tensor], which: Sequence[bool]
    ) -> list[torch.Tensor | None]:
        logits = [
            member.compute_logits(hidden_ND.contiguous()) if wanted else None
            for member, hidden_ND, wanted in zip(self._members, hidden, which, strict=True)
        ]
        return [self._without_padding(each) for each in logits]

    def _without_padding(self, logits: torch.Tensor | None) -> torch.Tensor | None:
        """A member's logits [N, V] of the common vocabulary."""
        return None if logits is None else self.without_never_drawn(logits[:, : self.vocab_size])

    def parameter_bytes(self) -> list[int]:
        return self._parameter_bytes or parameter_bytes(self._members)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Passes each member the tensors of its own checkpoint, as they arrive.

        Args:
          weights: (name, tensor) pairs; the first member's names come bare, the others' with
            `member_prefix`, each checkpoint in one piece.
        Returns: the names of the parameters that were set.
        """
        loaded: set[str] = set()
        shared_bytes = 0
        phrases = [f"policy {member.name}" for member in self.spec.members]
        announce_loading(0, phrases)
        for index, tensors in groupby(weights, key=lambda item: split_member_name(item[0])[0]):
            own_names = ((split_member_name(name)[1], tensor) for name, tensor in tensors)
            names = load_member(self._members[index], self.spec.members[index], own_names)
            loaded.update(f"{member_prefix(index)}.{name}" for name in names)
            maybe_retie_word_embeddings(self._members[index], self._model_configs[index])
            shared_bytes += deduplicate_layers(
                self._members[index], self._members[:index], keep=self._own_layers
            )
            announce_loading(index + 1, phrases)
        if shared_bytes:
            mib = shared_bytes / 2**20
            logger.info("Policies have layers in common: %.1f MiB are stored once.", mib)
        self._parameter_bytes = parameter_bytes(self._members)
        return loaded
