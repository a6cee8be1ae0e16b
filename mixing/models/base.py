"""Base class of both layouts: rows of hidden states that carry their weights.

One scheduler, one paged KV cache and one continuous batch serve all members. A step runs each
member on its tokens and lays their hidden states side by side, followed by each token's weights.
vLLM carries such a row wherever it carries hidden states (sampling, prompt logprobs, graph
buffers), so `compute_logits` always finds the weights next to what they mix.

    row of the output: | h_1 (D_1) | ... | h_M (D_M) | w_1 ... w_M as raw float32 bits | padding |

The padding makes a row's elements a multiple of 16, so that a GPU reads every row in pieces of 128
bits.

A single member has weight 1 in every row: it needs no weights and no mixing.

Shapes: T tokens, N logits rows, M members with a KV cache, K adapters, C = M + K coefficients of a
request, V vocabulary, D_m hidden width of member m.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.sequence import IntermediateTensors

from prefmix.mixing.batch.engine_settings import can_skip, spec_of
from prefmix.mixing.batch.step import Step, StepWeights
from prefmix.mixing.batch.weights_v1 import RowWeights, table_of_engine
from prefmix.mixing.kernels.log_linear_mix import log_linear_mix
from prefmix.mixing.models.begun_blocks import BegunBlocks
from prefmix.mixing.models.loading import split_member_name
from prefmix.mixing.models.skipping import takes_any_rows, tokens_of
from prefmix.mixing.prompts.cached_blocks import keep_windows_longer
from prefmix.mixing.vocabulary import CommonVocabulary
from prefmix.mixing.workarounds import apply_in_worker

if TYPE_CHECKING:
    from prefmix.mixing.batch.joined_requests_v2 import JoinedLayers

_ROW_ELEMENTS = 16
"""Rows start at multiples of so many elements. Triton knows that a load is aligned if strides are
multiples of 16 elements, and pointers of 16 bytes."""


class MixtureModel(nn.Module, ABC):
    """A vLLM model whose members run side by side. Subclasses define how they run and how their
    predictions are mixed."""

    hidden_sizes: list[int]
    """D_m of each member; set by the subclass."""
    never_drawn: torch.Tensor
    """int64, the ids below V that are not the same token to all members."""
    weights: StepWeights
    """The coefficients of the running requests; under V2 set by MixtureModelState."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        super().__init__()
        apply_in_worker(vllm_config)
        self.spec = spec_of(vllm_config)
        if self.spec.has_prompts:
            keep_windows_longer()
        model_config = vllm_config.model_config
        self.vocab_size: int = model_config.get_vocab_size()
        """The shortest of the members' (prefmix.mixing.engine.member_checks)."""
        self.dtype: torch.dtype = model_config.dtype
        self.device: torch.device = vllm_config.device_config.device
        self.is_single = self.spec.num_kv_members == 1
        self.step = Step(num_members=self.spec.num_kv_members, can_skip=can_skip(vllm_config))
        vocabulary = CommonVocabulary.of_config(model_config.hf_config)
        differing = [] if vocabulary is None else sorted(vocabulary.differing)
        ids = torch.tensor(differing, dtype=torch.int64, device=self.device)
        # A buffer survives vLLM's sleep, which may drop all other memory of a model.
        self.register_buffer("never_drawn", ids, persistent=False)
        lays_rows_out = self.spec.has_prompts and vllm_config.use_v2_model_runner
        self.takes_any_rows = takes_any_rows(self.device) and not lays_rows_out
        """True if a pass may hold any number of rows of each member."""
        self.max_mixed_rows: int | None = None
        """Most rows of logits that are computed at a time: as many as vLLM's memory profile sees.
        It sees neither prompt logprobs, of 1,024 rows, nor statistics. None on a CPU."""
        if self.device.type != "cpu":
            self.max_mixed_rows = vllm_config.scheduler_config.max_num_seqs
        self._begun_blocks = BegunBlocks()
        if not vllm_config.use_v2_model_runner:
            self.weights = RowWeights(table_of_engine(vllm_config, self.device))

    @abstractmethod
    def run_members(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        slots: Sequence[torch.Tensor],
        tokens: Sequence[torch.Tensor] | None,
        scales_TK: torch.Tensor,
    ) -> None:
        """Fills each member's slot [T, D_m] with its hidden states; zeros where it does not run.

        Args:
          tokens: per running member int64 [T_m], the tokens it runs; None if each runs all.
          scales_TK: scales of the adapters in the first member's rows; [T, 0] without adapters.
        """

    def inputs_of(
        self, member: int, tokens: torch.Tensor, input_ids: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The token ids and positions that a running member has at these tokens, int64 [T_m]."""
        if self.step.heads is None:
            return input_ids[tokens], positions[..., tokens]
        return self.step.heads.inputs(member, tokens, positions)

    @staticmethod
    def member_of_layer(name: str) -> int:
        """The member of a layer of attention, by the layer's name."""
        return split_member_name(name)[0]

    def join_attention(self, kv_cache_config: Any) -> list[JoinedLayers]:
        """Makes the members' caches one cache a layer, for vLLM's V2 model runner.

        Returns: the layers; none if each member's layers attend for themselves.
        """
        return []

    @abstractmethod
    def mix(self, hidden: Sequence[torch.Tensor], weights_NM: torch.Tensor) -> torch.Tensor | None:
        """Mixed logits [N, V] of the members' hidden states [N, D_m]; None on ranks that do not
        gather logits."""

    @abstractmethod
    def member_logits(self, hidden: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Logits [N, C] of each member that ran in this step; None for the others, and on ranks
        that do not gather logits."""

    @abstractmethod
    def parameter_bytes(self) -> list[int]:
        """Bytes of parameters on this rank: per member of the spec what only it uses, then what
        several use."""

    def mix_logits(
        self,
        logits: list[torch.Tensor | None],
        weights_NM: torch.Tensor,
        *,
        scale: Sequence[float] | None = None,
    ) -> torch.Tensor | None:
        """Mixes logits by member; None stands for members without weight. `mix` of a subclass uses
        it. Args: scale: per member a factor, or None."""
        if all(each is None for each in logits):
            return None
        if not weights_NM.is_cpu:
            return self.step.mix_in_one_pass(
                logits, weights_NM, vocab_size=self.vocab_size, scale=scale
            )
        if scale is None:
            self.step.keep_logits(logits)
        signed = self.spec.weight_space == "affine"
        return log_linear_mix(
            logits, weights_NM, vocab_size=self.vocab_size, scale=scale, signed=signed
        )

    @staticmethod
    def get_model_state_cls() -> type:
        """The class that keeps per-request state under vLLM's V2 model runner, which asks for
        it."""
        from prefmix.mixing.batch.weights_v2 import MixtureModelState

        return MixtureModelState

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Runs the active members on one step's tokens.

        Args:
          input_ids, positions: int [T].
          intermediate_tensors, inputs_embeds: always None; pipeline parallelism and prompt
            embeddings are refused at start.
        Returns: [T, sum(D_m) + weight columns] in the model's dtype, laid out as above; of a single
          member [T, D].
        """
        num_tokens = input_ids.shape[0]
        step, weights = self.step, self.weights
        weights.begin_pass(step)
        coefficients_TC = weights.token_coefficients(num_tokens)
        weights_TM, scales_TK = coefficients_TC.tensor_split([step.num_members], dim=1)
        tokens = None
        if step.can_skip and self.takes_any_rows:
            tokens = tokens_of(weights_TM, step.members)
        step.heads = heads = weights.heads(input_ids)
        parts: Sequence[torch.Tensor | None] = tokens or [None] * len(step.members)
        if self.device.type == "cpu":
            by_member = dict(zip(step.members, parts, strict=True))
            self._begun_blocks.clear(by_member, lag=heads is not None)
        if heads is not None:
            tokens = [heads.tokens(*each) for each in zip(step.members, parts, strict=True)]
        if self.is_single:
            shape = (num_tokens, self.hidden_sizes[0])
            out = torch.empty(shape, dtype=self.dtype, device=input_ids.device)
            with step.timed("forward"):
                self.run_members(input_ids, positions, [out], None, scales_TK)
            return out
        out, slots = self.new_rows(weights_TM)
        step.rows = weights.rows(num_tokens)
        with step.timed("forward"), weights.own_slots(num_tokens, self.member_of_layer):
            self.run_members(input_ids, positions, slots, tokens, scales_TK)
        return out

    def new_rows(self, weights_TM: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Rows of an output with their weights in them, and in them each member's slot [T, D_m]."""
        columns = weights_TM.view(self.dtype)
        widths = [*self.hidden_sizes, columns.shape[-1]]
        widths.append(-sum(widths) % _ROW_ELEMENTS)
        shape = (len(weights_TM), sum(widths))
        out = torch.empty(shape, dtype=self.dtype, device=weights_TM.device)
        *slots, weight_slot, _padding = torch.split(out, widths, dim=-1)
        weight_slot.copy_(columns)
        return out, slots

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Mixes the members' predictions, each row by its own weights.

        Args:
          hidden_states: rows of `forward`'s output, [N, width].
        Returns: [N, V]; None on tensor-parallel ranks that do not gather logits.
        """
        if self.max_mixed_rows is not None and len(hidden_states) > self.max_mixed_rows:
            return self._compute_in_parts(hidden_states, self.max_mixed_rows)
        hidden, weights_NM = self._unpacked(hidden_states)
        step = self.step
        step.keep_hidden(hidden, weights_NM)
        with step.timed("mix"):
            mixed_NV = self._mixed(hidden, weights_NM)
            step.check_rows(mixed_NV, hidden, weights_NM)
        return mixed_NV

    def _compute_in_parts(self, hidden_states: torch.Tensor, rows: int) -> torch.Tensor | None:
        """Mixes more rows than a step draws tokens from: those of prompt logprobs, which are
        neither measured nor checked."""
        mixed_NV = None
        for start in range(0, len(hidden_states), rows):
            part = self._mixed(*self._unpacked(hidden_states[start : start + rows]))
            if part is None:
                return None
            if mixed_NV is None:
                mixed_NV = part.new_empty((len(hidden_states), part.shape[1]))
            mixed_NV[start : start + rows] = part
        self.step.forget_logits()
        return mixed_NV

    def _unpacked(self, rows: torch.Tensor) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
        """Per member its hidden states [N, D_m], and float32 weights [N, M], of rows of `forward`'s
        output."""
        if self.is_single:
            return [rows], rows.new_ones((len(rows), 1), dtype=torch.float32)
        num_columns = self.step.num_members * torch.float32.itemsize // self.dtype.itemsize
        padding = rows.shape[-1] - sum(self.hidden_sizes) - num_columns
        widths = [*self.hidden_sizes, num_columns, padding]
        *hidden, columns, _padding = torch.split(rows, widths, dim=-1)
        ratio = torch.float32.itemsize // self.dtype.itemsize
        if columns.is_cpu or columns.storage_offset() % ratio:
            columns = columns.contiguous()  # on a GPU a launch, which kernels can do without
        return hidden, columns.view(torch.float32)

    def _mixed(
        self, hidden: Sequence[torch.Tensor], weights_NM: torch.Tensor
    ) -> torch.Tensor | None:
        return self.without_never_drawn(
            self._single_logits(hidden) if self.is_single else self.mix(hidden, weights_NM)
        )

    def without_never_drawn(self, logits_NV: torch.Tensor | None) -> torch.Tensor | None:
        """Bans the tokens that are not the same to all members, in place."""
        if logits_NV is None or not len(self.never_drawn):
            return logits_NV
        # After the mixing: a negative weight would turn a member's ban into +inf.
        return logits_NV.index_fill_(1, self.never_drawn, -torch.inf)

    def _single_logits(self, hidden: Sequence[torch.Tensor]) -> torch.Tensor | None:
        self.step.logits = self.member_logits(hidden)
        return self.step.logits[0]


def members_with_weight(weights_NM: torch.Tensor) -> list[bool]:
    """Per member, True if any row gives it weight. On a GPU, where looking would wait, always
    True."""
    if weights_NM.is_cpu and len(weights_NM):
        has_weight: list[bool] = (weights_NM != 0).any(dim=0).tolist()
        return has_weight
    return [True] * weights_NM.shape[1]
