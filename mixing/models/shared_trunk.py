"""`SharedTrunkMixtureForCausalLM`: one base and K LoRA adapters of it as one vLLM model.

The tokens of all members are stacked and pass through the base's layers together, so a step reads
the base's parameters once, whatever the number of members:

    rows of a pass: | tokens of the 1st running member (T) | ... | tokens of the last one (T) |

Each member has only the tokens of the requests that give it weight. On a CPU
(prefmix.mixing.models.skipping) a step with more rows than one policy's largest step takes several
passes. On a GPU the rows and their order are data of the pass and of the graphs that replay it
(prefmix.mixing.batch.needed_rows_v2). Where attention cannot take the rows of all members in one
call a layer, and in the other cases that the log names at the start, all members have all T tokens
in each step there, weighed or not.

Two kinds of layer know about the stack. A linear layer adds the adapters' low-rank updates to the
rows, each by the row's scale (prefmix.mixing.models.adapter_linears). An attention layer passes
each member's rows to that member's own attention, which has its own KV cache
(prefmix.mixing.models.stacked_attention).

A request that mixes parameters has rows in the first member only. They have all adapters by their
weights, and the first member's KV cache.
All other layers (norms, rotary embeddings, activations) treat each row alone and are vLLM's own.

The members share the LM head, and a sum of logits W h_k is W applied to a sum of hidden states. So
a step needs the head once, unless a soft-cap follows it.

Shapes: T tokens, n running members, R rows of the stack (n T or fewer; those of a graph of T'
tokens are M T'), N logits rows, M members with a KV cache, K adapters (those of members that are
not the base itself, and those of slots without a KV cache, which are part of mixed parameters
only), D hidden width.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.sequence import IntermediateTensors

from prefmix.mixing.checkpoints.lora import Adapter, read_adapter
from prefmix.mixing.kernels.log_linear_mix import log_linear_mix
from prefmix.mixing.models.adapter_linears import adapt_linears, row_samples
from prefmix.mixing.models.base import MixtureModel, members_with_weight
from prefmix.mixing.models.joined_attention import JoinedAttention, join_for_runner_v2
from prefmix.mixing.models.lm_heads import hidden_width, is_linear
from prefmix.mixing.models.loading import load_member, member_vllm_config
from prefmix.mixing.models.memory_sizes import parameter_bytes
from prefmix.mixing.models.stack import Stack, StackedInputs
from prefmix.mixing.models.stacked_attention import (
    attention_per_member,
    split_at_stacked_attention,
    stack_attention,
)
from prefmix.mixing.parameters.unfilled import built
from prefmix.mixing.slots.room import slot_parts
from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.start_stages import announce_loading

if TYPE_CHECKING:
    from prefmix.mixing.batch.joined_requests_v2 import JoinedLayers
    from prefmix.mixing.batch.needed_rows_v2 import NeededRows

logger = init_logger(f"vllm.{__name__}")


class SharedTrunkMixtureForCausalLM(MixtureModel):
    """The composite model. Built by vLLM; base and adapters come from the config's spec."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config)
        assert not prefix, "a mixture is a whole model, never a part of one"
        own = [read_adapter(policy) for policy in self.spec.adapters]
        adapters = [*own, *[None] * self.spec.adapter_slots]
        self.max_rows = vllm_config.scheduler_config.max_num_batched_tokens
        """Most rows of a pass on a CPU: those of one policy's largest step."""
        num_members = self.spec.num_kv_members
        self.step.runs_everyone = not self.takes_any_rows
        self.stack = Stack(
            num_members=num_members,
            adapter_members=self.spec.adapter_members,
            max_rows=self.max_rows * (1 if self.takes_any_rows else num_members),
            takes_any_rows=self.takes_any_rows,
            device=self.device,
            num_slots=self.spec.adapter_slots,
        )
        self.inputs = StackedInputs(self.max_rows * num_members)
        config = member_vllm_config(vllm_config, self.spec.checkpoints[0], index=0)
        if not self.takes_any_rows:
            most = self.max_rows * num_members
            config.compilation_config = for_rows(config.compilation_config, most)
        with attention_per_member(self.stack):
            base = built(lambda: initialize_model(config))
        for each in (vllm_config, config):
            split_at_stacked_attention(each.compilation_config)
        self.vllm_config = vllm_config
        self.attention = JoinedAttention(stack_attention(base, self.stack), config)
        self.adapted = adapt_linears(
            base,
            adapters,
            self.stack,
            slot_rank=self.spec.max_adapter_rank,
            slot_parts=slot_parts(base, self.spec),
        )
        self.adapters: list[Adapter | None] = adapters
        """In the order of the spec's `adapter_members`; None for an empty slot."""
        # Another mixture of the same base has another graph: this keeps its compiled code apart.
        config.additional_config = {
            **(config.additional_config or {}),
            "prefmix_trunk": graph_key(self.spec, own),
        }
        compilable = [each for each in base.modules() if hasattr(each, "do_not_compile")]
        is_compiled = not all(each.do_not_compile for each in compilable)
        with set_current_vllm_config(config):  # vLLM compiles by the one that is current here
            self.trunk = StackedTrunk(vllm_config=config, base=base)
        if not is_compiled:
            self.trunk.do_not_compile = True
        for module in compilable:
            module.do_not_compile = True  # part of the trunk's graph, or not compiled at all
        self.hidden_sizes = [hidden_width(base, config)] * num_members
        self._parameter_bytes: list[int] | None = None  # set after loading, before repacking

    def join_attention(self, kv_cache_config: Any) -> list[JoinedLayers]:
        if self.takes_any_rows or self.is_single:  # on a CPU `attention` joins them in each pass
            return []
        return join_for_runner_v2(self.attention.stacked, kv_cache_config, self.vllm_config)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Part of vLLM's model interface. The base embeds its own inputs."""
        return self.trunk.base.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See MixtureModel.forward. While a full CUDA graph is captured the answer is hidden states
        by row, [T', M D], of which `spread_rows` makes the output behind the graph."""
        needed = self.weights.needed_rows()
        if needed is None:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)
        with self.step.timed("forward"), needed.running_rows():
            hidden_RD: torch.Tensor = self.trunk(*needed.inputs)
        if needed.is_captured:
            return hidden_RD.reshape(needed.tokens_of_graph, -1)
        return self.spread_rows(hidden_RD, needed, len(input_ids))

    def spread_rows(
        self, hidden_RD: torch.Tensor, needed: NeededRows, num_tokens: int
    ) -> torch.Tensor:
        """Rows of `forward`'s output, of the hidden states of the rows that a step needs."""
        members = self.step.num_members
        out, slots = self.new_rows(self.weights.token_coefficients(num_tokens)[:, :members])
        own_TMD = beside(slots)
        if not needed.are_all(num_tokens):  # as of members that do not run
            own_TMD.zero_()
        needed.spread(hidden_RD, own_TMD)
        return out

    def run_members(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        slots: Sequence[torch.Tensor],
        tokens: Sequence[torch.Tensor] | None,
        scales_TK: torch.Tensor,
    ) -> None:
        if self.takes_any_rows:
            self._run_parts(input_ids, positions, slots, tokens, scales_TK)
            return
        assert tokens is None, "rows are only left out where any number of them can run"
        members, rows = self.step.members, self.step.rows
        assert len(members) == len(slots), "the pass of all members is the one that is compiled"
        inputs = [[each] * len(members) for each in (input_ids, positions)]
        if rows is not None:
            scales_TK = scales_TK[rows.source_MT[0]]
            laid_out = (rows.ids_MT, rows.positions_MT)
            inputs = [[each[member] for member in members] for each in laid_out]
        if len(members) > 1:
            input_ids, positions = self.inputs.of(inputs)
        self.stack.run(members, [slots[0].shape[0]] * len(members), scales_TK)
        with self.stack.padding():
            hidden_RD = self.trunk(input_ids, positions)
        if rows is None:
            beside(slots).copy_(hidden_RD.unflatten(0, (len(slots), -1)).transpose(0, 1))
            return
        for member, (slot, part) in enumerate(zip(slots, self.stack.split(hidden_RD), strict=True)):
            slot.copy_(rows.in_order(member, part))

    def _run_parts(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        slots: Sequence[torch.Tensor],
        tokens: Sequence[torch.Tensor] | None,
        scales_TK: torch.Tensor,
    ) -> None:
        members = self.step.members
        for member, slot in enumerate(slots):
            if tokens is not None or member not in members:
                slot.zero_()
        if len(members) == 1 and tokens is None:  # as vLLM runs one model
            self.stack.run(members, [len(input_ids)], scales_TK)
            with self.attention.running(members, None):
                slots[members[0]].copy_(self.trunk(input_ids, positions))
            return
        everything = torch.arange(len(input_ids))
        every = zip(members, tokens or [everything] * len(members), strict=True)
        parts = {member: own for member, own in every if len(own)}
        for together in passes_of(parts, max_rows=self.max_rows):
            inputs = [self.inputs_of(each, parts[each], input_ids, positions) for each in together]
            ids_R = torch.cat([ids for ids, _ in inputs])
            positions_R = torch.cat([places for _, places in inputs], dim=-1)
            own_TK = scales_TK[parts[0]] if 0 in together else None
            self.stack.run(together, [len(parts[member]) for member in together], own_TK)
            own = None if tokens is None else [parts[member] for member in together]
            with self.attention.running(together, own, self.step.heads):
                hidden_RD = self.trunk(ids_R, positions_R)
            for member, hidden in zip(together, self.stack.split(hidden_RD), strict=True):
                slots[member].index_copy_(0, parts[member], hidden)

    @functools.cached_property
    def is_head_linear(self) -> bool:
        """True if the logits of mixed hidden states are the mixed logits: neither soft-cap nor norm
        follows the mixing."""
        base = self.trunk.base
        processors = [each for each in base.modules() if isinstance(each, LogitsProcessor)]
        is_plain = len(processors) == 1 and not processors[0].soft_cap
        if is_plain and is_linear(
            base.compute_logits, self.hidden_sizes[0], dtype=self.dtype, device=self.device
        ):
            return True
        logger.info(
            "The LM head of %s is more than one matrix product: every policy's logits are mixed.",
            type(base).__name__,
        )
        return False

    def mix(self, hidden: Sequence[torch.Tensor], weights_NM: torch.Tensor) -> torch.Tensor | None:
        has_weight = members_with_weight(weights_NM)
        if self.is_head_linear:
            mixed_ND = _mixed_hidden(hidden, weights_NM, has_weight, self.dtype)
            step, most = self.step, self.max_mixed_rows
            num_rows = (1 + len(step.members)) * len(weights_NM)
            if step.wants_all_logits and (most is None or num_rows <= most):
                mixed_NV, *logits = self._logits_of([mixed_ND, *hidden], [True, *step.active])
                step.keep_logits(logits)
                return mixed_NV
            return self.trunk.base.compute_logits(mixed_ND)
        if not weights_NM.is_cpu:  # where looking would wait, the step knows who runs
            has_weight = self.step.active
        return self.mix_logits(self._logits_of(hidden, has_weight), weights_NM)

    def member_logits(self, hidden: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        return self._logits_of(hidden, self.step.active)

    def _logits_of(
        self, hidden: Sequence[torch.Tensor], which: Sequence[bool]
    ) -> list[torch.Tensor | None]:
        """The wanted members' logits, by one pass of their rows through the shared LM head."""
        rows = torch.cat([each for each, wanted in zip(hidden, which, strict=True) if wanted])
        stacked = self.without_never_drawn(self.trunk.base.compute_logits(rows))
        if stacked is None:
            return [None] * len(hidden)
        parts = iter(torch.split(stacked, hidden[0].shape[0]))
        return [next(parts) if wanted else None for wanted in which]

    def parameter_bytes(self) -> list[int]:
        return self._parameter_bytes or self._sum_parameters()

    def _sum_parameters(self) -> list[int]:
        total = parameter_bytes([self.trunk.base])[0]
        one_adapter, one_slot = (
            sum(method.bytes_of(slot=slot) for method in self.adapted.values())
            for slot in (False, True)
        )
        adapted, slots = self.spec.adapter_members, self.spec.slot_members
        own = [
            one_slot if member in slots else one_adapter * (member in adapted)
            for member in range(self.spec.num_members)
        ]
        return [*own, total - sum(own)]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads the base's tensors, then each adapter from its own folder.

        Args:
          weights: (name, tensor) pairs of the base checkpoint.
        Returns: the names of the parameters that were set.
        """
        own = [each for each in self.adapters if each is not None]
        phrases = ["the base", *(f"adapter {each.name}" for each in own)]
        announce_loading(0, phrases)
        samples = row_samples(self.adapted.values())
        loaded = load_member(self.trunk.base, self.spec.checkpoints[0], samples.watch(weights))
        for method in self.adapted.values():
            method.place(samples)
        for index, adapter in enumerate(own):
            announce_loading(index + 1, phrases)
            with adapter.opened() as read:
                for method in self.adapted.values():
                    method.put(index, method.read(adapter, read))
        announce_loading(len(phrases), phrases)
        self._parameter_bytes = self._sum_parameters()
        names = {f"trunk.base.{name}" for name in loaded}
        return names | {
            f"trunk.base.{layer}.{name}"
            for layer, method in self.adapted.items()
            for name in method.parameter_names
        }


def _mixed_hidden(
    hidden: Sequence[torch.Tensor],
    weights_NM: torch.Tensor,
    has_weight: Sequence[bool],
    dtype: torch.dtype,
) -> torch.Tensor:
    """The members' hidden states by their weights [N, D], summed in float32."""
    if not weights_NM.is_cpu:  # one kernel, where every operation is a launch
        return log_linear_mix(hidden, weights_NM, dtype=dtype)
    # A member without weight must leave no trace, whatever its rows hold: 0 * inf is NaN.
    terms = [
        torch.where(weight_N1 == 0, 0.0, weight_N1 * hidden_ND)
        for hidden_ND, weight_N1, present in zip(
            hidden, torch.split(weights_NM, 1, dim=-1), has_weight, strict=True
        )
        if present
    ]
    return torch.stack(terms).sum(0).to(dtype)


def beside(slots: Sequence[torch.Tensor]) -> torch.Tensor:
    """The members' slots [T, D], which lie side by side, as one tensor [T, M, D]."""
    first = slots[0]
    num_tokens, width = first.shape
    return first.as_strided((num_tokens, len(slots), width), (first.stride(0), width, 1))


def for_rows(config: CompilationConfig, num_rows: int) -> CompilationConfig:
    """The configuration for which vLLM compiles a trunk for passes of so many rows.

    It goes by the length of a piece's inputs and ends at one policy's largest step. The engine's
    own configuration stays as it is: vLLM warms up steps of the sizes that it names. What is noted
    in the one, such as layers by name, is in the other.
    """
    own = copy.copy(config)
    if own.compile_ranges_endpoints:
        *smaller, last = sorted(own.compile_ranges_endpoints)
        own.compile_ranges_endpoints = [*smaller, max(last, num_rows)]
    return own


def graph_key(spec: MixtureSpec, adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The parts of a trunk, beside its base, that its graph depends on; JSON-ready.

    On a GPU the graphs of steps have the rows of all members: those without an adapter, too.
    """
    return {
        "members": spec.num_kv_members,
        "adapted": spec.adapter_members,
        "slots": [spec.adapter_slots, spec.max_adapter_rank],
        "ranks": [sorted(adapter.ranks.items()) for adapter in adapters],
        "prompts": spec.has_prompts,
    }


def passes_of(parts: Mapping[int, Sized], *, max_rows: int) -> list[list[int]]:
    """Groups members into passes through the trunk of at most `max_rows` rows; a member with more
    rows has a pass of its own.

    One read of the base serves all rows of a pass. But a pass of more rows computes longer than it
    reads, and glibc maps each buffer above 32 MiB anew, which costs as much as a small product.
    """
    passes: list[list[int]] = []
    num_rows = max_rows
    for member, part in parts.items():
        if not passes or num_rows + len(part) > max_rows:
            passes.append([])
            num_rows = 0
        passes[-1].append(member)
        num_rows += len(part)
    return passes


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": -1})
class StackedTrunk(nn.Module):
    """The base over stacked rows, compiled as one graph if vLLM compiles the base."""

    do_not_compile: bool

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", base: Any) -> None:
        super().__init__()
        self.base = base

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Args: input_ids, positions: int [R]. Returns: [R, D]."""
        hidden: torch.Tensor = self.base(input_ids, positions)
        return hidden
