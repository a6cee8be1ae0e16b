"""What both layouts of a mixture have in common: rows of hidden states that carry their weights.

One scheduler, one paged KV cache and one continuous batch serve all members. A step runs each
member on its tokens and lays their hidden states side by side, followed by each token's
weights; vLLM carries such a row wherever it carries hidden states (sampling, prompt logprobs,
graph buffers), so `compute_logits` always finds the weights next to what they mix.

    row of the output: | h_1 (D_1) | ... | h_M (D_M) | w_1 ... w_M as raw float32 bits |

A single member has weight 1 in every row: it needs no weights and no mixing.

Shapes: T tokens, N logits rows, M members, V vocabulary, D_m hidden width of member m.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.sequence import IntermediateTensors

from prefmix.mixing.batch.broken_rows import find_broken_rows
from prefmix.mixing.batch.request_weights import WeightTable, can_skip, spec_of, table_of_engine
from prefmix.mixing.batch.statistics import MixtureStatisticsCollector
from prefmix.mixing.kernels.log_linear_mix import log_linear_mix
from prefmix.mixing.models.skipping import takes_any_rows, tokens_of
from prefmix.mixing.workarounds.cpu_seeds import rewind_generators_on_cpu
from prefmix.mixing.workarounds.zero_kv_blocks import begin_blocks_clean

_NOT_TIMED = nullcontext()


@dataclass(slots=True)
class Step:
    """What is known of the step under way. Apart from the model, for a torch module takes several
    microseconds to set an attribute."""

    active: list[bool]
    """Which members run."""
    broken_rows_N: torch.Tensor | None = None
    """Codes of the rows that the step draws tokens from (prefmix.mixing.batch.broken_rows); None:
    sound."""
    is_checked: bool = False
    """Whether these rows have been looked at."""
    logits: list[torch.Tensor | None] | None = None
    """Each member's, if the rows that are being mixed needed them."""

    @property
    def members(self) -> list[int]:
        """Those that run."""
        return [member for member, active in enumerate(self.active) if active]


class MixtureModel(nn.Module, ABC):
    """A vLLM model whose members run side by side. Subclasses say how they run and how they mix."""

    hidden_sizes: list[int]
    """D_m of each member; set by the subclass."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        super().__init__()
        begin_blocks_clean()
        self.spec = spec_of(vllm_config)
        model_config = vllm_config.model_config
        self.vocab_size: int = model_config.get_vocab_size()
        self.dtype: torch.dtype = model_config.dtype
        self.can_skip = can_skip(vllm_config)
        self.is_single = self.spec.num_members == 1
        self.everyone = [True] * self.spec.num_members
        """Who runs where no batch says: in profiling and warm-up passes."""
        self.step = Step(active=list(self.everyone))
        self.observer: MixtureStatisticsCollector | None = None
        """Measures what is served, once it is asked to (prefmix.mixing.engine.worker_extension)."""
        self.checks_rows = False
        """Whether somebody ends the requests whose rows are broken
        (prefmix.mixing.engine.worker_extension)."""
        self.device: torch.device = vllm_config.device_config.device
        self.takes_any_rows = takes_any_rows(self.device)
        self._table: WeightTable | None = None
        if not vllm_config.use_v2_model_runner:
            self._table = table_of_engine(vllm_config, self.device)
            if self.device.type == "cpu":
                rewind_generators_on_cpu()

    @abstractmethod
    def run_members(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        slots: Sequence[torch.Tensor],
        tokens: Sequence[torch.Tensor] | None,
    ) -> None:
        """Fills each member's slot [T, D_m] with its hidden states; zeros where it does not run.

        Args:
          tokens: per active member int64 [T_m], those it runs; None: each runs all.
        """

    @abstractmethod
    def mix(self, hidden: Sequence[torch.Tensor], weights_NM: torch.Tensor) -> torch.Tensor | None:
        """Mixed logits [N, V] of the members' hidden states [N, D_m]; None on ranks without."""

    @abstractmethod
    def member_logits(self, hidden: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Logits [N, C] of each member that ran in this step; None for others and on ranks
        without."""

    @abstractmethod
    def parameter_bytes(self) -> list[int]:
        """Bytes of parameters on this rank: by member what only it uses, then what several use."""

    def mix_logits(
        self, logits: list[torch.Tensor | None], weights_NM: torch.Tensor
    ) -> torch.Tensor | None:
        """For `mix`: mixes the logits of members with weight, None for the others."""
        if all(each is None for each in logits):
            return None
        self.step.logits = logits
        if self.observer is not None:
            self.observer.keep_logits(logits)
        signed = self.spec.weight_space == "affine"
        return log_linear_mix(logits, weights_NM, vocab_size=self.vocab_size, signed=signed)

    @staticmethod
    def get_model_state_cls() -> type:
        """V2 model runner: where this model's per-request state lives."""
        from prefmix.mixing.batch.model_state_v2 import MixtureModelState

        return MixtureModelState

    def set_active_members(self, active_M: Sequence[bool]) -> None:
        """Says which members the next forward pass has to run; the rest may be skipped."""
        if self.can_skip:
            self.step.active = list(active_M)

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
        Returns: [T, sum(D_m) + weight columns] in the model's dtype, laid out as above; of a single
          member [T, D].
        """
        num_tokens = input_ids.shape[0]
        if self._table is not None:
            self._begin_step_v1(self._table)
        if self.is_single:
            shape = (num_tokens, self.hidden_sizes[0])
            out = torch.empty(shape, dtype=self.dtype, device=input_ids.device)
            with self._timed("forward"):
                self.run_members(input_ids, positions, [out], None)
            return out
        if token_weights is None:
            token_weights = self._token_weights_v1(num_tokens, input_ids.device)
        columns = token_weights.view(self.dtype)
        widths = [*self.hidden_sizes, columns.shape[-1]]
        out = torch.empty((num_tokens, sum(widths)), dtype=self.dtype, device=input_ids.device)
        *slots, weight_slot = torch.split(out, widths, dim=-1)
        tokens = None
        if self.can_skip and self.takes_any_rows:
            tokens = tokens_of(token_weights, self.step.members)
        with self._timed("forward"):
            self.run_members(input_ids, positions, slots, tokens)
        weight_slot.copy_(columns)
        return out

    def _begin_step_v1(self, table: WeightTable) -> None:
        """Learns from the batch's rows who has to run; all do where there is no batch, as in
        profiling."""
        if not get_forward_context().attn_metadata:
            self.set_active_members(self.everyone)
            return
        if not self.is_single:
            self.set_active_members(table.active_members())
        self.begin_step(table.measured[: table.num_active_rows])

    def _token_weights_v1(self, num_tokens: int, device: torch.device) -> torch.Tensor:
        """float32 [T, M] from the batch's rows; uniform where there is no batch."""
        assert self._table is not None
        attn_metadata = get_forward_context().attn_metadata
        if not attn_metadata:
            uniform_M = torch.tensor(self.spec.uniform_weights, device=device)
            return uniform_M.expand(num_tokens, -1).contiguous()
        # Every attention layer's metadata describes the same batch.
        metadata = next(iter(attn_metadata.values()))
        return self._table.token_weights(metadata.query_start_loc, num_tokens)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Mixes the members' predictions, each row by its own weights.

        Args:
          hidden_states: rows of `forward`'s output, [N, width].
        Returns: [N, V]; None on tensor-parallel ranks that do not gather logits.
        """
        if self.is_single:
            hidden: Sequence[torch.Tensor] = [hidden_states]
            weights_NM = hidden_states.new_ones((len(hidden_states), 1), dtype=torch.float32)
        else:
            num_columns = hidden_states.shape[-1] - sum(self.hidden_sizes)
            *hidden, columns = torch.split(hidden_states, [*self.hidden_sizes, num_columns], dim=-1)
            weights_NM = columns.contiguous().view(torch.float32)
        if self.observer is not None and self.observer.wants_logits:
            self.observer.kept = (hidden, weights_NM, None)
        with self._timed("mix"):
            mixed_NV = (
                self._single_logits(hidden) if self.is_single else self.mix(hidden, weights_NM)
            )
            if mixed_NV is not None and self.checks_rows and not self.step.is_checked:
                self.step.broken_rows_N = find_broken_rows(
                    mixed_NV, hidden, weights_NM, self.step.logits
                )
        self.step.is_checked = True  # the step's other calls are for prompt logprobs
        self.step.logits = None
        return mixed_NV

    def _single_logits(self, hidden: Sequence[torch.Tensor]) -> torch.Tensor | None:
        self.step.logits = self.member_logits(hidden)
        return self.step.logits[0]

    def begin_step(self, keys: Sequence[str | None]) -> None:
        """A batch's pass begins. Args: keys: per row, under what to keep its figures, if at all."""
        self.step.is_checked, self.step.broken_rows_N = False, None
        if self.observer is not None:
            self.observer.begin_step(keys)

    def _timed(self, part: str) -> AbstractContextManager[None]:
        if self.observer is None or not self.observer.is_sampled:
            return _NOT_TIMED
        return self.observer.timed(part)


def members_with_weight(weights_NM: torch.Tensor) -> list[bool]:
    """Per member: does any row give it weight? On a GPU, where looking would wait, always yes."""
    if weights_NM.is_cpu and len(weights_NM):
        return [bool(column.any()) for column in weights_NM.unbind(dim=1)]
    return [True] * weights_NM.shape[1]
