"""This rank's share of a linear layer, and the adapters' factors that fit it.

Shapes: R ranks, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from vllm.model_executor.layers.linear import LinearBase, QKVParallelLinear, RowParallelLinear

from prefmix.mixing.checkpoints.lora import Adapter, AdapterError, Factors
from prefmix.mixing.parameters.row_placement import Rows


def input_size(layer: LinearBase) -> int:
    """Number of inputs on this rank."""
    return int(getattr(layer, "input_size_per_partition", layer.input_size))


def rows_by_order(layer: LinearBase, place: int | None) -> Rows:
    """The outputs that this rank holds if they are in the checkpoint's order."""
    sizes: list[int] = layer.output_partition_sizes
    heres, theres, here, there = [], [], 0, 0
    for index, size in enumerate(sizes):
        rank, ranks = _shard(layer, index)
        if place in (None, index):
            # vLLM builds a model with the GPU as the default device.
            heres.append(torch.arange(here, here + size, device="cpu"))
            theres.append(torch.arange(size, device="cpu") + there + rank * size)
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


def check_shape(
    layer: LinearBase, adapter: Adapter, part: str, place: int | None, factors: Factors
) -> None:
    """Raises: AdapterError for factors of a layer of other sizes."""
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


def check_finite(adapter: Adapter, part: str, a_RI: torch.Tensor, b_RO: torch.Tensor) -> None:
    """Raises: AdapterError for numbers that would spoil rows of others: adapters multiply these as
    zeros, and 0 times infinity is NaN."""
    if not (a_RI.isfinite().all() and b_RO.isfinite().all()):
        raise AdapterError(
            f"policy {adapter.name!r}: its adapter of {part!r} holds NaN or infinite numbers, or "
            f"some too large for {b_RO.dtype}; train or save it again"
        )
