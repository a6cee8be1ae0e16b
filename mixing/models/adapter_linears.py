"""Linear layers of the base that add the adapters' LoRA updates to the rows of a shared trunk.

    y = W x + [B_1 ... B_K] (s * [A_1; ...; A_K] x)    with the row's scales s

prefmix.mixing.models.stack has the scales.

Shapes: K adapters, I inputs, O outputs; in adapters' factors R is the largest sum of ranks, of
inputs and outputs the number of rows of the stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.router.gate_linear import GateLinear
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.platforms import current_platform

from prefmix.mixing.checkpoints.lora import Adapter, AdapterError, Factors
from prefmix.mixing.models.joined_adapters import FactorsInMatrix, join_factors, stack_factors
from prefmix.mixing.models.stack import Stack
from prefmix.mixing.parameters.row_placement import (
    PlacementError,
    Rows,
    RowSamples,
    place_rows,
    row_hashes,
    sampled_inputs,
)
from prefmix.mixing.parameters.unfilled import USUAL_FUSIONS

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
        layer: gets the parameters adapters_a [K, R, in] and adapters_b [K, R, out].
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
        given = [each for each in adapters if each is not None]
        ranks = [sum(adapter.ranks.get(part, 0) for part in parts) for adapter in given]
        num_ranks = max(*ranks, slot_rank * len(parts), 0)
        shape_a = (len(adapters), num_ranks, _input_size(layer))
        shape_b = (len(adapters), num_ranks, sum(layer.output_partition_sizes))
        for name, shape in (("adapters_a", shape_a), ("adapters_b", shape_b)):
            # Outputs that an adapter does not change stay zero, as do ranks that it does not have.
            layer.register_parameter(
                name, nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)
            )
        self.bytes_per_adapter = (math.prod(shape_a[1:]) + math.prod(shape_b[1:])) * dtype.itemsize
        self.adapters = adapters
        self.has_slots = slot_rank > 0
        self.refusal: str | None = None
        """The reason for which no adapter can change this layer; None if adapters can."""
        self.rows = {part: _rows_by_order(layer, place) for part, place in parts.items()}
        self.joined: FactorsInMatrix | None = None

    def create_weights(self, layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the layer's own method has created its weights."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        # A matrix is repacked once, so what joins it cannot change while the engine runs.
        if isinstance(self.inner, UnquantizedLinearMethod) and not self.has_slots:
            join = join_factors if self.stack.takes_any_rows else stack_factors
            self.joined = join(layer, self.inner, self.stack)
        self.inner.process_weights_after_loading(layer)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Args: x: [R, in], or [1, R, in] in models of transformers' code. Returns: [..., out]."""
        if x.dim() > 2:
            return self.apply(layer, x.flatten(0, -2), bias).reshape(*x.shape[:-1], -1)
        if self.joined is not None:
            return self.joined.apply(layer, x, bias)
        out: torch.Tensor = self.inner.apply(layer, x, bias)
        low = x @ layer.adapters_a.flatten(0, 1).T
        return torch.addmm(out, self.stack.scaled(low), layer.adapters_b.flatten(0, 1))

    @property
    def input_share(self) -> slice:
        """The inputs of the whole layer that this rank has."""
        share = _input_size(self.layer)
        start = self.layer.tp_rank * share if isinstance(self.layer, RowParallelLinear) else 0
        return slice(start, start + share)

    @property
    def sampled_inputs(self) -> torch.Tensor:
        """int64 [S], the inputs of this rank by which `place` tells rows apart."""
        return sampled_inputs(_input_size(self.layer), start=self.input_share.start)

    def place(self, samples: RowSamples) -> None:
        """Finds the rows of each part in the layer, whose weight has been loaded.

        Layers whose quantised form has no matrix of the checkpoint's shape keep to the order that
        the checkpoint has.
        Raises: AdapterError if a row cannot be followed; where only slots have room, `refusal`.
        """
        weight = getattr(self.layer, "weight", None)
        outputs = sum(self.layer.output_partition_sizes)
        share = _input_size(self.layer)
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
        self, adapter: Adapter, read: Callable[[str], Factors]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's share of one adapter's factors, checked, as the layer holds them.

        Args:
          read: gives the factors of a layer, by the checkpoint's name.
        Returns: [R, in] and [R, out] on the layer's device; zeros where the adapter has nothing.
        Raises: AdapterError.
        """
        whole_a, whole_b = (
            torch.zeros_like(each.data[0])
            for each in (self.layer.adapters_a, self.layer.adapters_b)
        )
        start = 0
        for part, place in self.parts.items():
            rank = adapter.ranks.get(part)
            if rank is None:
                continue
            factors = read(part)
            _check_shape(self.layer, adapter, part, place, factors)
            dtype = whole_b.dtype
            a_RI = factors.lora_a.to(dtype)
            b_RO = (factors.lora_b.float() * factors.scaling).T.to(dtype)
            _check_finite(adapter, part, a_RI, b_RO)
            own_RI = a_RI[:, self.input_share]
            whole_a[start : start + rank].copy_(own_RI)
            rows = self.rows[part]
            own_RP = whole_b[start : start + rank]
            own_RP.index_copy_(1, rows.here, b_RO[:, rows.there].to(whole_b.device))
            start += rank
        return whole_a, whole_b

    def put(self, index: int, factors: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """Gives the adapter at `index` its factors, from `read`; None for none."""
        for held, factor in zip(
            (self.layer.adapters_a, self.layer.adapters_b), factors or (None, None), strict=True
        ):
            if factor is None:
                held.data[index].zero_()
            else:
                held.data[index].copy_(factor)


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


def _input_size(layer: LinearBase) -> int:
    """Number of inputs on this rank."""
    return int(getattr(layer, "input_size_per_partition", layer.input_size))


def _rows_by_order(layer: LinearBase, place: int | None) -> Rows:
    """The outputs that this rank holds if they are in the checkpoint's order."""
    sizes: list[int] = layer.output_partition_sizes
    heres, theres, here, there = [], [], 0, 0
    for index, size in enumerate(sizes):
        rank, ranks = _shard(layer, index)
        if place in (None, index):
            heres.append(torch.arange(here, here + size))
            theres.append(torch.arange(size) + there + rank * size)
        here += size
        there += size * ranks if place is None else 0
    return Rows(here=torch.cat(heres), there=torch.cat(theres))


def _shard(layer: LinearBase, index: int) -> tuple[int, int]:
    """This rank's shard of the outputs at `index`, and how many shards there are."""
    if isinstance(layer, RowParallelLinear) or not hasattr(layer, "input_size_per_partition"):
        return 0, 1  # all outputs on every rank
    replicas = 1
    if isinstance(layer, QKVParallelLinear) and index > 0:
        replicas = layer.num_kv_head_replicas
    return layer.tp_rank // replicas, layer.tp_size // replicas


def _check_shape(
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


def _check_finite(adapter: Adapter, part: str, a_RI: torch.Tensor, b_RO: torch.Tensor) -> None:
    """All adapters multiply all rows, other members' rows as zeros, and 0 times infinity is NaN."""
    if not (a_RI.isfinite().all() and b_RO.isfinite().all()):
        raise AdapterError(
            f"policy {adapter.name!r}: its adapter of {part!r} holds NaN or infinite numbers, or "
            f"some too large for {b_RO.dtype}; train or save it again"
        )
