"""`SharedTrunkMixtureForCausalLM`: one base and K LoRA adapters of it as one vLLM model.

The tokens of all members are stacked and pass through the base's layers together, so the base's
parameters are read once a step however many members there are:

    rows of a pass: | tokens of the 1st running member (T) | ... | tokens of the last one (T) |

Two kinds of layer know about the stack. A linear layer adds each member's low-rank update to that
member's rows. An attention layer hands each member's rows to that member's own attention, which has
its own KV cache. Everything else (norms, rotary embeddings, activations) is row by row and vLLM's
own, whatever the architecture. The members share the LM head, and a sum of logits W h_k is W
applied to a sum of hidden states: one LM head per step, unless a soft-cap stands in between.

Shapes: T tokens, n running members, N logits rows, M members, K adapters (M, or M - 1 with a
reference, which is the base itself and stands last), D hidden width, R sum of ranks.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import (
    LinearBase,
    QKVParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.utils import initialize_model

from mixing.adapters import Adapter, AdapterError, Factors, read_adapter
from mixing.loading import member_prefix, member_vllm_config
from mixing.mixture_model import MixtureModel, members_with_weight
from mixing.sizes import parameter_bytes


class Stack:
    """Which members' rows the pass under way holds. Read by every layer, set before each pass."""

    def __init__(self, *, num_members: int, num_adapters: int) -> None:
        self.num_adapters = num_adapters
        self.num_members = num_members
        self.run(range(num_members))

    def run(self, members: Sequence[int]) -> None:
        """The next pass runs these members, in this order."""
        self.members = list(members)
        self.owners = torch.eye(self.num_members, self.num_adapters, dtype=torch.bool)[self.members]
        """bool [n, K] on the CPU: whose rows belong to which adapter."""

    @property
    def with_adapter(self) -> list[int]:
        """The running members that are adapters; they come before the reference."""
        return [member for member in self.members if member < self.num_adapters]


class SharedTrunkMixtureForCausalLM(MixtureModel):
    """The composite model. Built by vLLM; base and adapters come from the config's spec."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config)
        assert not prefix, "a mixture is a whole model, never a part of one"
        adapters = [read_adapter(policy) for policy in self.spec.adapters]
        self.stack = Stack(num_members=self.spec.num_members, num_adapters=len(adapters))
        config = member_vllm_config(vllm_config, self.spec.checkpoints[0], index=0)
        with attention_per_member(self.stack):
            base = initialize_model(config)
        stack_attention(base, self.stack)
        self.adapted = adapt_linears(base, adapters, self.stack)
        self.adapters = adapters
        # Another mixture of the same base is another graph: its compiled code is kept apart.
        config.additional_config = {
            **(config.additional_config or {}),
            "prefmix_trunk": [sorted(adapter.ranks.items()) for adapter in adapters],
        }
        self.trunk = StackedTrunk(vllm_config=config, base=base, stack=self.stack)
        self.hidden_sizes = [config.model_config.get_hidden_size()] * self.spec.num_members
        processors = [each for each in base.modules() if isinstance(each, LogitsProcessor)]
        self.is_head_linear = len(processors) == 1 and not processors[0].soft_cap
        if self.can_skip and vllm_config.device_config.device.type == "cpu":
            # The pass that is compiled: a reference without weight is no part of the usual one.
            self.everyone = [weight != 0 for weight in self.spec.uniform_weights]
            if self.spec.weight_space == "affine":
                self.everyone = [True] * self.spec.num_members
        self.active = list(self.everyone)
        self._parameter_bytes: list[int] | None = None  # known once loaded, before repacking

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Part of vLLM's model interface; the base embeds its own inputs."""
        return self.trunk.base.embed_input_ids(input_ids)

    def run_members(
        self, input_ids: torch.Tensor, positions: torch.Tensor, slots: Sequence[torch.Tensor]
    ) -> None:
        if self.stack.members != (members := [m for m, active in enumerate(self.active) if active]):
            self.stack.run(members)
        # One set of members is compiled; any other is rarer and runs layer by layer.
        run = self.trunk if self.active == self.everyone else self.trunk.forward
        hidden = iter(torch.split(run(input_ids, positions), input_ids.shape[0]))
        for slot, active in zip(slots, self.active, strict=True):
            if active:
                slot.copy_(next(hidden))
            else:
                slot.zero_()

    def mix(self, hidden: Sequence[torch.Tensor], weights_NM: torch.Tensor) -> torch.Tensor | None:
        has_weight = members_with_weight(weights_NM)
        if self.is_head_linear:
            # A member without weight must leave no trace, whatever its cache holds: 0 * inf is NaN.
            terms = [
                torch.where(weight_N1 == 0, 0.0, weight_N1 * hidden_ND)
                for hidden_ND, weight_N1, present in zip(
                    hidden, torch.split(weights_NM, 1, dim=-1), has_weight, strict=True
                )
                if present
            ]
            mixed_ND = torch.stack(terms).sum(0).to(self.dtype)
            return self.trunk.base.compute_logits(mixed_ND)
        return self.mix_logits(self._logits_of(hidden, has_weight), weights_NM)

    def member_logits(self, hidden: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        return self._logits_of(hidden, self.active)

    def _logits_of(
        self, hidden: Sequence[torch.Tensor], which: Sequence[bool]
    ) -> list[torch.Tensor | None]:
        """The shared LM head over the rows of several members at once."""
        rows = torch.cat([each for each, wanted in zip(hidden, which, strict=True) if wanted])
        stacked = self.trunk.base.compute_logits(rows)
        if stacked is None:
            return [None] * len(hidden)
        parts = iter(torch.split(stacked, hidden[0].shape[0]))
        return [next(parts) if wanted else None for wanted in which]

    def parameter_bytes(self) -> list[int]:
        return self._parameter_bytes or self._sum_parameters()

    def _sum_parameters(self) -> list[int]:
        total = parameter_bytes([self.trunk.base])[0]
        one_adapter = sum(method.bytes_per_adapter for method in self.adapted.values())
        adapters = [one_adapter] * len(self.adapters)
        reference = [0] * (self.spec.num_members - len(adapters))
        return [*adapters, *reference, total - sum(adapters)]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads the base's tensors, then each adapter from its own folder.

        Args:
          weights: (name, tensor) pairs of the base checkpoint.
        Returns: the names of the parameters that were set.
        """
        loaded: set[str] = self.trunk.base.load_weights(weights)
        for index, adapter in enumerate(self.adapters):
            with adapter.opened() as read:
                for method in self.adapted.values():
                    method.load(index, read)
        self._parameter_bytes = self._sum_parameters()
        names = {f"trunk.base.{name}" for name in loaded}
        return names | {
            f"trunk.base.{layer}.{factor}"
            for layer in self.adapted
            for factor in ("adapters_a", "adapters_b")
        }


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": -1})
class StackedTrunk(nn.Module):
    """The base over stacked rows: what is compiled as one graph."""

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", base: Any, stack: Stack
    ) -> None:
        super().__init__()
        self.base = base
        self.stack = stack
        for module in base.modules():
            if hasattr(module, "do_not_compile"):
                module.do_not_compile = True  # it is part of this graph, or runs layer by layer

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Args: input_ids, positions: int [T]. Returns: [n * T, D], member by member."""
        copies = len(self.stack.members)
        hidden: torch.Tensor = self.base(input_ids.repeat(copies), positions.repeat(copies))
        return hidden


# --- attention: one per member -------------------------------------------------------------------


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
        self.layers = nn.ModuleList(layers)
        self.stack = stack

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any
    ) -> torch.Tensor:
        """Args: query, key, value: [n * T, ...]. Returns: [n * T, heads * head size]."""
        members = self.stack.members
        num_tokens = query.shape[0] // len(members)
        parts = [
            self.layers[member](
                *(
                    None if rows is None else rows.narrow(0, place * num_tokens, num_tokens)
                    for rows in (query, key, value)
                ),
                *args,
            )
            for place, member in enumerate(members)
        ]
        return torch.cat(parts)


def stack_attention(base: nn.Module, stack: Stack) -> None:
    """Puts a StackedAttention in the place of each attention layer.

    Raises: AdapterError for a base whose layers mix tokens in another way.
    """
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

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
                setattr(module, attribute, StackedAttention(layers, stack))


# --- linear layers: one low-rank update per member -----------------------------------------------


class AdapterLinearMethod(QuantizeMethodBase):
    """A linear layer's own method, plus each member's low-rank update of that member's rows.

    The update is computed where the layer's own product is, on this rank's share of inputs and
    outputs and before anything is reduced or gathered, so that tensor parallelism needs no more.
    """

    def __init__(
        self,
        layer: LinearBase,
        inner: QuantizeMethodBase,
        parts: Mapping[str, int | None],
        adapters: Sequence[Adapter],
        stack: Stack,
        *,
        dtype: torch.dtype,
    ) -> None:
        """Args:
        layer: the layer; gets the parameters adapters_a [K, in, R] and adapters_b [K, R, out].
        inner: how the layer multiplies by itself.
        parts: checkpoint's name of each part of the layer to its place among the layer's
          outputs (q, k, v of a fused layer: 0, 1, 2), None for the whole.
        """
        self.inner = inner
        self.layer = layer
        self.parts = parts
        self.stack = stack
        ranks = [sum(adapter.ranks.get(part, 0) for part in parts) for adapter in adapters]
        shape_a = (len(adapters), _input_size(layer), max(ranks))
        shape_b = (len(adapters), max(ranks), sum(layer.output_partition_sizes))
        for name, shape in (("adapters_a", shape_a), ("adapters_b", shape_b)):
            # Parts of the outputs that an adapter leaves alone stay zero.
            layer.register_parameter(
                name, nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)
            )
        self.bytes_per_adapter = (math.prod(shape_a[1:]) + math.prod(shape_b[1:])) * dtype.itemsize
        self.loaded_ranks = [0] * len(adapters)
        self.adapters = adapters
        self.joined: JoinedFactors | None = None

    def create_weights(self, layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Made by the layer's own method before."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        if isinstance(self.inner, UnquantizedLinearMethod) and layer.weight.is_cpu:
            self.joined = join_factors(layer, self.inner, self.stack)
        self.inner.process_weights_after_loading(layer)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Args: x: [n * T, in]. Returns: [n * T, out]."""
        if self.joined is not None:
            return self.joined.apply(layer, x, bias)
        out: torch.Tensor = self.inner.apply(layer, x, bias)
        running = self.stack.with_adapter
        if not running:
            return out
        a, b = layer.adapters_a, layer.adapters_b
        if len(running) < self.stack.num_adapters:
            a, b = a[running], b[running]
        num_tokens = x.shape[0] // len(self.stack.members)
        rows = len(running) * num_tokens
        low_KTR = torch.bmm(x[:rows].view(len(running), num_tokens, x.shape[-1]), a)
        own_KTO = out[:rows].view(len(running), num_tokens, out.shape[-1])
        adapted = torch.baddbmm(own_KTO, low_KTR, b).view(rows, out.shape[-1])
        return adapted if rows == out.shape[0] else torch.cat([adapted, out[rows:]])

    def load(self, index: int, read: Callable[[str], Factors]) -> None:
        """Copies this rank's share of one adapter's factors into the layer.

        Args:
          index: which adapter.
          read: its tensors by the checkpoint's layer name.
        """
        adapter = self.adapters[index]
        for part, place in self.parts.items():
            rank = adapter.ranks.get(part)
            if rank is None:
                continue
            factors = read(part)
            _check_factors(self.layer, adapter, part, place, factors)
            start = self.loaded_ranks[index]
            self.loaded_ranks[index] += rank
            a_RI = factors.lora_a
            if isinstance(self.layer, RowParallelLinear):
                share = _input_size(self.layer)
                a_RI = a_RI.narrow(1, self.layer.tp_rank * share, share)
            self.layer.adapters_a.data[index, :, start : start + rank].copy_(a_RI.T)
            b_RO = (factors.lora_b.float() * factors.scaling).T
            for target, source, size in _output_shares(self.layer, place):
                self.layer.adapters_b.data[
                    index, start : start + rank, target : target + size
                ].copy_(b_RO[:, source : source + size])


class JoinedFactors:
    """The CPU's way: every lora_A is part of the layer's own matrix, every lora_B of one more.

    Small batched products cost their call on a CPU. One product with [W; A_1 ... A_K] gives each
    row the layer's output and every adapter's low-rank input; the foreign ones are cleared before
    one product with [B_1 ... B_K] adds the row's own update.
    """

    def __init__(
        self, inner: UnquantizedLinearMethod, up: nn.Module, stack: Stack, *, rank: int
    ) -> None:
        """Args:
        inner: multiplies by a module's `weight`, which it has repacked.
        up: has the [out, K * R] weight of all lora_B.
        rank: R.
        """
        self._inner = inner
        self._up = up
        self._stack = stack
        self._rank = rank

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """As AdapterLinearMethod.apply."""
        num_low = self._stack.num_adapters * self._rank
        joined: torch.Tensor = self._inner.apply(layer, x, None)
        out, low = joined.split([joined.shape[-1] - num_low, num_low], dim=-1)  # type: ignore[no-untyped-call]
        places = (len(self._stack.members), -1, self._stack.num_adapters, self._rank)
        own = self._stack.owners[:, None, :, None]
        low = torch.where(own, low.reshape(places), 0.0).reshape(low.shape)
        out = out + self._inner.apply(self._up, low, None)
        return out if bias is None else out + bias.to(out.dtype)


def join_factors(layer: Any, inner: UnquantizedLinearMethod, stack: Stack) -> JoinedFactors | None:
    """Moves a loaded layer's adapters into its own matrix; None where they would outgrow it."""
    a_KIR, b_KRO = layer.adapters_a.data, layer.adapters_b.data
    num_low = a_KIR.shape[0] * a_KIR.shape[2]
    if num_low > min(layer.weight.shape):
        return None
    down = a_KIR.transpose(1, 2).reshape(num_low, -1)
    layer.weight = nn.Parameter(torch.cat([layer.weight.data, down]), requires_grad=False)
    up = nn.Module()
    up.weight = nn.Parameter(b_KRO.reshape(num_low, -1).T.contiguous(), requires_grad=False)
    inner.process_weights_after_loading(up)
    for name in ("adapters_a", "adapters_b"):
        delattr(layer, name)
    return JoinedFactors(inner, up, stack, rank=a_KIR.shape[2])


def adapt_linears(
    base: Any, adapters: Sequence[Adapter], stack: Stack
) -> dict[str, AdapterLinearMethod]:
    """Gives each linear layer that any adapter changes an AdapterLinearMethod.

    Returns: by the layer's name in the base.
    Raises: AdapterError for an adapter of something that is no linear layer of the base.
    """
    linears = {
        name: module for name, module in base.named_modules() if isinstance(module, LinearBase)
    }
    parts_of: dict[str, dict[str, int | None]] = {}
    for adapter in adapters:
        for part in adapter.ranks:
            layer, place = _layer_of(base, part)
            if layer not in linears:
                raise AdapterError(
                    f"policy {adapter.name!r}: its adapter changes {part!r}, which is no linear "
                    f"layer of the base ({type(base).__name__}); it was trained on another model, "
                    "or on layers that cannot share a trunk"
                )
            parts_of.setdefault(layer, {})[part] = place
    methods = {}
    for layer, parts in parts_of.items():
        module = linears[layer]
        assert module.quant_method is not None
        ordered = dict(sorted(parts.items(), key=lambda item: item[1] or 0))
        module.quant_method = AdapterLinearMethod(
            module, module.quant_method, ordered, adapters, stack, dtype=torch.get_default_dtype()
        )
        methods[layer] = module.quant_method
    return methods


def _layer_of(base: Any, part: str) -> tuple[str, int | None]:
    """The base's layer that holds a checkpoint's layer, and its place in it if it is one of many.

    Source: the attributes hf_to_vllm_mapper and packed_modules_mapping of vLLM's model classes.
    """
    mapper = getattr(base, "hf_to_vllm_mapper", None)
    name = part if mapper is None else mapper.get_rename_mapper().map_name(part) or part
    stem, _, last = name.rpartition(".")
    for packed, pieces in getattr(base, "packed_modules_mapping", {}).items():
        if last in pieces and len(pieces) > 1:
            return f"{stem}.{packed}", pieces.index(last)
    return name, None


def _input_size(layer: LinearBase) -> int:
    """This rank's share of the inputs."""
    return int(getattr(layer, "input_size_per_partition", layer.input_size))


def _output_shares(layer: LinearBase, place: int | None) -> list[tuple[int, int, int]]:
    """Which of a checkpoint's outputs this rank holds: (where here, where there, how many)."""
    sizes: list[int] = layer.output_partition_sizes
    shares, here, there = [], 0, 0
    for index, size in enumerate(sizes):
        rank, ranks = _shard(layer, index)
        if place in (None, index):
            shares.append((here, there + rank * size, size))
        here += size
        there += size * ranks if place is None else 0
    return shares


def _shard(layer: LinearBase, index: int) -> tuple[int, int]:
    """This rank's shard of the outputs at `index`, and how many shards there are."""
    if isinstance(layer, RowParallelLinear) or not hasattr(layer, "input_size_per_partition"):
        return 0, 1  # all outputs on every rank
    replicas = 1
    if isinstance(layer, QKVParallelLinear) and index > 0:
        replicas = layer.num_kv_head_replicas
    return layer.tp_rank // replicas, layer.tp_size // replicas


def _check_factors(
    layer: LinearBase, adapter: Adapter, part: str, place: int | None, factors: Factors
) -> None:
    outputs = sum(
        size * _shard(layer, index)[1]
        for index, size in enumerate(layer.output_partition_sizes)
        if place in (None, index)
    )
    came = (factors.lora_b.shape[0], factors.lora_a.shape[1])
    if came != (outputs, layer.input_size):
        raise AdapterError(
            f"policy {adapter.name!r}: its adapter of {part!r} is for a layer of {came[1]} inputs "
            f"and {came[0]} outputs, but the base's has {layer.input_size} and {outputs}; it was "
            "trained on another model"
        )
    if not (factors.lora_a.isfinite().all() and factors.lora_b.isfinite().all()):
        raise AdapterError(
            f"policy {adapter.name!r}: its adapter of {part!r} holds NaN or infinite numbers; "
            "train or save it again"
        )
