"""Linear layers of the base that add the adapters' LoRA updates to the rows of a shared trunk.

    y = W x + [B_1 ... B_K] (s * [A_1; ...; A_K] x)    with the row's scales s

prefmix.mixing.models.stack has the scales. On a CPU the factors of slots, whose adapters come
while the engine runs, are tensors of their own (prefmix.mixing.slots.factors). On a GPU they are
held with those of the start's adapters, where they are changed in place.

Shapes: K adapters, I inputs, O outputs; in adapters' factors R is the largest sum of ranks, of
inputs and outputs the number of rows of the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.router.gate_linear import GateLinear
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    ReplicatedLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.platforms import current_platform

from prefmix.mixing.checkpoints.lora import Adapter, AdapterError, Factors
from prefmix.mixing.models.joined_adapters import FactorsInMatrix, join_factors, stack_factors
from prefmix.mixing.models.layer_shards import (
    check_finite,
    check_shape,
    input_size,
    rows_by_order,
)
from prefmix.mixing.models.stack import Stack
from prefmix.mixing.parameters.row_placement import (
    PlacementError,
    RowSamples,
    place_rows,
    row_hashes,
    sampled_inputs,
)
from prefmix.mixing.parameters.unfilled import USUAL_FUSIONS
from prefmix.mixing.slots.factors import add_slot_factors

_FORWARDS_BY_METHOD = {
    each.forward for each in (ReplicatedLinear, ColumnParallelLinear, RowParallelLinear)
}
"""The functions that call a layer's `quant_method`, in which an adapter lives."""


class AdapterLinearMethod(QuantizeMethodBase):
    """Computes a linear layer's own product, plus the adapters' updates as each row has them.

    The update uses this rank's share of inputs and outputs and is added before anything is reduced
    or gathered, so tensor parallelism needs nothing more.
    """

    def __init__(
        self,
        layer: LinearBase,
        inner: QuantizeMethodBase,
        parts: Mapping[str, int | None],
        adapters: Sequence[Adapter | None],
        stack: Stack,
        *,
        dtype: torch.dtype,
        slot_rank: int = 0,
    ) -> None:
        """Args:
        layer: gets the parameters adapters_a [K, R, in] and adapters_b [K, R, out]; on a CPU those
          of slots are slots_a and slots_b.
        inner: the layer's own method.
        parts: from the checkpoint's name of each part of the layer to its place among the
          layer's outputs (q, k, v of a fused layer: 0, 1, 2); None for the whole layer.
        adapters: None for a slot without an adapter; the caller changes it with the slots.
        slot_rank: the largest rank of a part of an adapter that may come later; 0 for none.
        """
        self.inner = inner
        self.layer = layer
        self.parts = parts
        self.stack = stack
        self.dtype = dtype
        given = [each for each in adapters if each is not None]
        ranks = max((sum(each.ranks.get(part, 0) for part in parts) for each in given), default=0)
        slot_ranks = slot_rank * len(parts)
        self.holds_slots_apart = stack.num_slots > 0 and holds_slots_apart()
        self.num_held = len(adapters)
        """K, the adapters in adapters_a and adapters_b; slots follow them."""
        if self.holds_slots_apart:
            self.num_held -= stack.num_slots
            self._register("slots", stack.num_slots, slot_ranks)
        else:
            ranks = slot_ranks = max(ranks, slot_ranks)
        self.num_ranks, self.num_slot_ranks = ranks, slot_ranks
        if ranks and self.num_held:
            self._register("adapters", self.num_held, ranks)
        self.adapters = adapters
        self.refusal: str | None = None
        """The reason for which no adapter can change this layer; None if adapters can."""
        self.rows = {part: rows_by_order(layer, place) for part, place in parts.items()}
        self.joined: FactorsInMatrix | None = None

    def _register(self, name: str, count: int, num_ranks: int) -> None:
        # Outputs that an adapter does not change stay zero, as do ranks that it does not have.
        for letter, size in zip("ab", self._sizes, strict=True):
            zeros = torch.zeros((count, num_ranks, size), dtype=self.dtype)
            parameter = nn.Parameter(zeros, requires_grad=False)
            self.layer.register_parameter(f"{name}_{letter}", parameter)

    @property
    def _sizes(self) -> tuple[int, int]:
        """Numbers of inputs and of outputs on this rank."""
        return input_size(self.layer), sum(self.layer.output_partition_sizes)

    @property
    def parameter_names(self) -> list[str]:
        """The layer's parameters that hold factors, before anything joins its matrix."""
        names = (f"{name}_{letter}" for name in ("adapters", "slots") for letter in "ab")
        return [name for name in names if hasattr(self.layer, name)]

    def bytes_of(self, *, slot: bool) -> int:
        """Bytes that an adapter of the start takes, or a slot."""
        num_ranks = self.num_slot_ranks if slot else self.num_ranks
        return num_ranks * sum(self._sizes) * self.dtype.itemsize

    def create_weights(self, layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the layer's own method has created its weights."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        if isinstance(self.inner, UnquantizedLinearMethod) and hasattr(layer, "adapters_a"):
            join = join_factors if self.stack.takes_any_rows else stack_factors
            self.joined = join(layer, self.inner, self.stack)
        self.inner.process_weights_after_loading(layer)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Args: x: [R, in], or [1, R, in] in models of transformers' code. Returns: [..., out]."""
        if x.dim() > 2:
            return self.apply(layer, x.flatten(0, -2), bias).reshape(*x.shape[:-1], -1)
        out = self._with_held(layer, x, bias)
        if self.holds_slots_apart:
            scales = self.stack.slot_scales(len(x))
            used = self.stack.slots_used
            add_slot_factors(out, x, layer.slots_a, layer.slots_b, scales, used)
        return out

    def _with_held(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.joined is not None:
            return self.joined.apply(layer, x, bias)
        out: torch.Tensor = self.inner.apply(layer, x, bias)
        if not hasattr(layer, "adapters_a"):
            return out
        low = x @ layer.adapters_a.flatten(0, 1).T
        return self.stack.updated(out, low, layer.adapters_b.flatten(0, 1), self.num_held)

    @property
    def input_share(self) -> slice:
        """The inputs of the whole layer that this rank has."""
        share = input_size(self.layer)
        start = self.layer.tp_rank * share if isinstance(self.layer, RowParallelLinear) else 0
        return slice(start, start + share)

    @property
    def sampled_inputs(self) -> torch.Tensor:
        """int64 [S], the inputs of this rank by which `place` tells rows apart."""
        return sampled_inputs(input_size(self.layer), start=self.input_share.start)

    def place(self, samples: RowSamples) -> None:
        """Finds the rows of each part in the layer, whose weight has been loaded.

        Layers whose quantised form has no matrix of the checkpoint's shape keep to the order that
        the checkpoint has.
        Raises: AdapterError if a row cannot be followed; where only slots have room, `refusal`.
        """
        weight = getattr(self.layer, "weight", None)
        outputs = sum(self.layer.output_partition_sizes)
        share = input_size(self.layer)
        if weight is None or weight.shape != (outputs, share):
            assert not isinstance(self.inner, UnquantizedLinearMethod), "its weight is [out, in]"
            return
        loaded_P = row_hashes(weight[:, sampled_inputs(share).to(weight.device)])
        try:
            self.rows = place_rows(
                loaded_P,
                {part: samples.rows_of(part, loaded_P, weight.dtype) for part in self.parts},
                self.rows,
                has_all=self.layer.tp_size == 1,
            )
        except PlacementError as error:
            self.refusal = (
                f"the base's layers {', '.join(self.parts)} cannot take adapters here: {error}; "
                "merge the adapters into the base (peft: merge_and_unload) and serve full "
                "checkpoints with --policy"
            )
            if any(each is not None and self.changes(each) for each in self.adapters):
                raise AdapterError(self.refusal) from None

    def changes(self, adapter: Adapter) -> bool:
        """True if an adapter changes a part of this layer."""
        return not adapter.ranks.keys().isdisjoint(self.parts)

    def read(
        self, adapter: Adapter, read: Callable[[str], Factors], *, for_slot: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's share of one adapter's factors, checked, as the layer holds them.

        Args:
          read: gives the factors of a layer, by the checkpoint's name.
          for_slot: true for an adapter that comes into a slot.
        Returns: [R, in] and [R, out] in the CPU's memory; zeros where the adapter has nothing.
        Raises: AdapterError.
        """
        num_ranks = self.num_slot_ranks if for_slot else self.num_ranks
        whole_a, whole_b = (
            torch.zeros((num_ranks, size), dtype=self.dtype, device="cpu") for size in self._sizes
        )
        start = 0
        for part, place in self.parts.items():
            rank = adapter.ranks.get(part)
            if rank is None:
                continue
            factors = read(part)
            check_shape(self.layer, adapter, part, place, factors)
            dtype = whole_b.dtype
            a_RI = factors.lora_a.to(dtype)
            b_RO = (factors.lora_b.float() * factors.scaling).T.to(dtype)
            check_finite(adapter, part, a_RI, b_RO)
            own_RI = a_RI[:, self.input_share]
            whole_a[start : start + rank].copy_(own_RI)
            rows = self.rows[part]
            own_RP = whole_b[start : start + rank]
            own_RP.index_copy_(1, rows.here, b_RO.cpu()[:, rows.there])
            start += rank
        return whole_a, whole_b

    def copy(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of the adapter at `index`, as `put` takes them, in the host's memory."""
        held_a, held_b = self._held(index)
        return held_a.to("cpu", copy=True), held_b.to("cpu", copy=True)

    def put(self, index: int, factors: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """Gives the adapter at `index` its factors, from `read`; None for none."""
        for held, factor in zip(self._held(index), factors or (None, None), strict=True):
            if factor is None:
                held.zero_()
            else:
                held.copy_(factor)

    def _held(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The places of an adapter's factors, [R, in] and [R, out]; without ranks where the layer
        has none for it."""
        layer, is_slot = self.layer, index >= self.num_held
        if not is_slot and self.joined is not None:
            return self.joined.factors(layer, index)
        name = "slots" if is_slot else "adapters"
        if not hasattr(layer, f"{name}_a"):
            return torch.empty(0, self._sizes[0]), torch.empty(0, self._sizes[1])
        place = index - self.num_held if is_slot else index
        held_a, held_b = (getattr(layer, f"{name}_{letter}").data[place] for letter in "ab")
        return held_a, held_b


def adapt_linears(
    base: Any,
    adapters: Sequence[Adapter | None],
    stack: Stack,
    *,
    slot_rank: int = 0,
    slot_parts: Iterable[str] = (),
) -> dict[str, AdapterLinearMethod]:
    """Gives an AdapterLinearMethod to each linear layer that an adapter changes.

    Args:
      adapters: None for a slot, whose adapter comes later.
      slot_rank: the largest rank that a slot has room for.
      slot_parts: names that a checkpoint's layers may have, which slots get room for where the base
        has them; of several names of one layer the first counts.
    Returns: the methods by the layer's name in the base.
    Raises: AdapterError if an adapter changes something that is no linear layer of the base.
    """
    # A router has two names in models whose experts hold it, too.
    modules = base.named_modules(remove_duplicate=False)
    linears = {name: module for name, module in modules if isinstance(module, LinearBase)}
    parts_of: dict[str, dict[str, int | None]] = {}
    for adapter in filter(None, adapters):
        for part in adapter.ranks:
            layer, place = _layer_of(base, part, linears)
            if layer not in linears:
                raise AdapterError(
                    f"policy {adapter.name!r}: its adapter changes {part!r}, and the base "
                    f"({type(base).__name__}) has no linear layer of that name: it was trained on "
                    "another model, or vLLM has the layer in another form; in that case merge it "
                    "into the base (peft: merge_and_unload) and serve full checkpoints with "
                    "--policy"
                )
            if has_own_product(linears[layer]):
                raise AdapterError(
                    f"policy {adapter.name!r}: its adapter changes {part!r}, which vLLM multiplies "
                    "by a kernel of its own that knows no adapters; merge it into the base (peft: "
                    "merge_and_unload) and serve full checkpoints with --policy"
                )
            parts_of.setdefault(layer, {})[part] = place
    for part in slot_parts:
        layer, place = _layer_of(base, part, linears)
        if layer in linears and not has_own_product(linears[layer]):
            parts = parts_of.setdefault(layer, {})
            taken = parts.values()
            if not parts or not (place is None or place in taken or None in taken):
                parts[part] = place
    methods = {}
    for layer, parts in parts_of.items():
        module = linears[layer]
        assert module.quant_method is not None
        ordered = dict(sorted(parts.items(), key=lambda item: item[1] or 0))
        module.quant_method = AdapterLinearMethod(
            module,
            module.quant_method,
            ordered,
            adapters,
            stack,
            dtype=module.params_dtype,
            slot_rank=slot_rank,
        )
        methods[layer] = module.quant_method
    return methods


def row_samples(methods: Iterable[AdapterLinearMethod]) -> RowSamples:
    """The samples of a base's checkpoint that all layers' `place` takes."""
    pairs = [(part, method) for method in methods for part in method.parts]
    return RowSamples(
        {part: method.sampled_inputs for part, method in pairs},
        {part: int(method.layer.input_size) for part, method in pairs},
    )


def holds_slots_apart() -> bool:
    """True on a CPU, whose kernels repack a layer's matrix once."""
    return bool(current_platform.is_cpu())


def has_own_product(layer: LinearBase) -> bool:
    """True for a layer that may compute past its method, such as experts' routers on a GPU."""
    if isinstance(layer, GateLinear) and current_platform.is_cpu():
        return False
    return type(layer).forward not in _FORWARDS_BY_METHOD


def _layer_of(base: Any, part: str, layers: Container[str]) -> tuple[str, int | None]:
    """The base's layer that holds a checkpoint's layer, and its place among several in that layer.

    Source: the attributes hf_to_vllm_mapper and packed_modules_mapping of vLLM's model classes.
    """
    mapper = getattr(base, "hf_to_vllm_mapper", None)
    name = part if mapper is None else mapper.get_rename_mapper().map_name(part) or part
    stem, _, last = name.rpartition(".")
    declared = getattr(base, "packed_modules_mapping", {})
    for packed, pieces in {**USUAL_FUSIONS, **declared}.items():
        if last in pieces and len(pieces) > 1 and f"{stem}.{packed}" in layers:
            return f"{stem}.{packed}", pieces.index(last)
    return name, None
