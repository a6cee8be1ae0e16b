"""`LogLinearMixtureForCausalLM`: M full checkpoints as one vLLM model.

One scheduler, one paged KV cache and one continuous batch serve all members. A step runs each
member on the same tokens and lays their hidden states side by side, followed by each token's
weights; vLLM carries such a row wherever it carries hidden states (sampling, prompt logprobs,
graph buffers), so `compute_logits` always finds the weights next to what they mix.

    row of the output: | h_1 (D_1) | ... | h_M (D_M) | w_1 ... w_M as raw float32 bits |

Shapes: T tokens, N logits rows, M members, V vocabulary, D_m hidden width of member m.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.sequence import IntermediateTensors

from mixing.cpu_seeds import rewind_generators_on_cpu
from mixing.kernels.log_linear_mix import log_linear_mix
from mixing.loading import (
    member_prefix,
    member_vllm_config,
    secondary_sources,
    split_member_name,
)
from mixing.request_weights import WeightTable, spec_of, table_of_engine
from mixing.scheduling import can_skip


class LogLinearMixtureForCausalLM(nn.Module):
    """The composite model. Built by vLLM; the members come from the config's mixture spec."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        assert not prefix, "a mixture is a whole model, never a part of one"
        self.spec = spec_of(vllm_config)
        model_config = vllm_config.model_config
        self.vocab_size: int = model_config.get_vocab_size()
        self.dtype: torch.dtype = model_config.dtype
        configs = [
            member_vllm_config(vllm_config, member, index=index)
            for index, member in enumerate(self.spec.members)
        ]
        # A ModuleDict, not a ModuleList: vLLM wants exactly one number in a layer's name.
        self.members = nn.ModuleDict(
            {
                f"p{index}": initialize_model(config, prefix=member_prefix(index))
                for index, config in enumerate(configs)
            }
        )
        self.hidden_sizes = [config.model_config.get_hidden_size() for config in configs]
        # Of all members, not of those that happen to run: a row must not depend on its neighbours.
        self.common_vocab_size = min(config.model_config.get_vocab_size() for config in configs)
        self.secondary_weights = secondary_sources(self.spec)
        self._can_skip = can_skip(vllm_config)
        self._active = [True] * self.spec.num_members
        self._table: WeightTable | None = None
        if not vllm_config.use_v2_model_runner:
            device = vllm_config.device_config.device
            self._table = table_of_engine(vllm_config, device)
            if device.type == "cpu":
                rewind_generators_on_cpu()

    @property
    def _members(self) -> list[Any]:
        return list(self.members.values())

    @staticmethod
    def get_model_state_cls() -> type:
        """V2 model runner: where this model's per-request state lives."""
        from mixing.runner_v2 import MixtureModelState

        return MixtureModelState

    def set_active_members(self, active_M: Sequence[bool]) -> None:
        """Says which members the next forward pass has to run; the rest may be skipped."""
        if self._can_skip:
            self._active = list(active_M)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Part of vLLM's model interface; members embed their own inputs."""
        return self._members[0].embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Runs the active members on one step's tokens.

        Args:
          input_ids, positions: int [T].
          intermediate_tensors, inputs_embeds: always None; pipeline parallelism and prompt
            embeddings are refused at start.
          token_weights: float32 [T, M] from the V2 model state; None under V1.
        Returns: [T, sum(D_m) + weight columns] in the model's dtype, laid out as above.
        """
        num_tokens = input_ids.shape[0]
        if token_weights is None:
            token_weights = self._token_weights_v1(num_tokens, input_ids.device)
        columns = token_weights.view(self.dtype)
        width = sum(self.hidden_sizes) + columns.shape[-1]
        out = torch.empty((num_tokens, width), dtype=self.dtype, device=input_ids.device)
        for slot, member, active in zip(
            torch.split(out, [*self.hidden_sizes, columns.shape[-1]], dim=-1),
            self._members,
            self._active,
            strict=False,
        ):
            # Copied at once: with CUDA graphs the next member may reuse this one's output memory.
            if active:
                slot.copy_(member(input_ids, positions))
            else:
                slot.zero_()
        out[:, -columns.shape[-1] :] = columns
        return out

    def _token_weights_v1(self, num_tokens: int, device: torch.device) -> torch.Tensor:
        """float32 [T, M] from the batch's rows; uniform where there is no batch (profiling)."""
        assert self._table is not None
        attn_metadata = get_forward_context().attn_metadata
        if not attn_metadata:
            self.set_active_members([True] * self.spec.num_members)
            uniform_M = torch.tensor(self.spec.uniform_weights, device=device)
            return uniform_M.expand(num_tokens, -1).contiguous()
        self.set_active_members(self._table.active_members())
        # Every attention layer's metadata describes the same batch.
        metadata = next(iter(attn_metadata.values()))
        return self._table.token_weights(metadata.query_start_loc, num_tokens)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Mixes the members' logits, each row by its own weights.

        Args:
          hidden_states: rows of `forward`'s output, [N, width].
        Returns: float32 [N, V]; None on tensor-parallel ranks that do not gather logits.
        """
        num_columns = hidden_states.shape[-1] - sum(self.hidden_sizes)
        *hidden, columns = torch.split(hidden_states, [*self.hidden_sizes, num_columns], dim=-1)
        weights_NM = columns.contiguous().view(torch.float32)
        logits = [
            member.compute_logits(hidden_ND.contiguous()) if has_weight else None
            for member, hidden_ND, has_weight in zip(
                self._members, hidden, self._members_with_weight(weights_NM), strict=True
            )
        ]
        if all(member_logits is None for member_logits in logits):
            return None
        common = [None if each is None else each[:, : self.common_vocab_size] for each in logits]
        signed = self.spec.weight_space == "affine"
        return log_linear_mix(common, weights_NM, vocab_size=self.vocab_size, signed=signed)

    def _members_with_weight(self, weights_NM: torch.Tensor) -> list[bool]:
        # On a GPU looking would stall the stream; there the mix ignores zero weights instead.
        if weights_NM.is_cpu and len(weights_NM):
            return [bool(column.any()) for column in weights_NM.unbind(dim=1)]
        return [True] * weights_NM.shape[1]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Hands each member its own checkpoint's tensors, streaming.

        Args:
          weights: (name, tensor) pairs; the first member's names come bare, the others' with
            `member_prefix`, each checkpoint in one piece.
        Returns: the names of the parameters that were set.
        """
        loaded: set[str] = set()
        for index, tensors in groupby(weights, key=lambda item: split_member_name(item[0])[0]):
            own_names = ((split_member_name(name)[1], tensor) for name, tensor in tensors)
            names = self._members[index].load_weights(own_names)
            loaded.update(f"{member_prefix(index)}.{name}" for name in names)
        return loaded
