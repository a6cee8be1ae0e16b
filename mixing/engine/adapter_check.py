"""Checks that each adapter of a shared trunk changes the loaded layers as its file says.

Kernels of their own, repacked matrices and layers that compute past their quantisation's method can
lose an adapter without an error. So some loaded layers run on two rows, one with the adapter and
one without, and their difference is compared with scaling * B(A x), computed from the file.

Shapes: I inputs and O outputs of a layer on this rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from prefmix.mixing.checkpoints.lora import Adapter, Factors

_TOLERANCE = 0.25
"""Part of an update by which a layer may differ from it, beside rounding."""

_MAX_ROUNDING = 0.05
"""Updates that rounding may change by a larger part are too small to be seen in one row."""

_NOBODY = -1
"""A member that the stack does not know, whose rows have no adapter."""


@torch.inference_mode()
def check_adapters(model: Any) -> list[str]:
    """Runs one layer of every kind that each adapter changes.

    Args:
      model: a loaded SharedTrunkMixtureForCausalLM. Other layouts have nothing to check.
    Returns: a sentence for each adapter that a layer loses or changes.
    """
    found = (check_adapter(model, index) for index in range(len(getattr(model, "adapters", ()))))
    return [failure for failure in found if failure is not None]


@torch.inference_mode()
def check_adapter(model: Any, index: int) -> str | None:
    """`check_adapters` of the adapter at one place of `model.adapters`.

    Returns: the sentence; None if every layer does what it should, or the place is an empty slot.
    """
    adapter, member = model.adapters[index], model.spec.adapter_members[index]
    if adapter is None:
        return None
    with adapter.opened() as read:
        for name, method in _layers_of_each_kind(adapter, model.adapted):
            error = _error(method, index, member, read, dtype=model.dtype, device=model.device)
            if math.isnan(error):
                return (
                    f"policy {adapter.name!r}: its adapter computes NaN or infinity in the base's "
                    f"layer {name!r}: its factors are too large; train or save it again"
                )
            if error > _TOLERANCE:
                return (
                    f"policy {adapter.name!r}: its adapter does not change the base's layer "
                    f"{name!r} as its factors say (off by {error:.0%} of the change); merge it "
                    "into the base (peft: merge_and_unload) and serve full checkpoints with "
                    "--policy"
                )
    return None


def _layers_of_each_kind(adapter: Adapter, adapted: Any) -> Iterator[tuple[str, Any]]:
    """The first layer of each name, such as qkv_proj, that the adapter changes."""
    seen = set()
    for name, method in adapted.items():
        parts = tuple(part for part in method.parts if part in adapter.ranks)
        kinds = tuple(part.rpartition(".")[2] for part in parts)
        if parts and kinds not in seen:
            seen.add(kinds)
            yield name, method


def _error(
    method: Any,
    index: int,
    member: int,
    read: Callable[[str], Factors],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """The part of an adapter's update by which a layer differs from it: 0 if it is right, 1 if it
    is lost. 0 for an update that is zero, or lost in the rounding of the layer's own output."""
    layer, stack, share = method.layer, method.stack, method.input_share
    factors = {part: read(part) for part in method.parts if part in method.adapters[index].ranks}
    # Along the rows of lora_A, where an update is large beside the layer's own output.
    down_RI = torch.cat([each.lora_a.float() for each in factors.values()])
    signs_R = torch.ones(len(down_RI))
    signs_R[1::2] = -1.0
    input_I = signs_R @ down_RI
    input_I = (input_I / input_I.square().mean().sqrt().clamp(min=1e-30)).to(dtype)

    def output(member: int) -> torch.Tensor:
        stack.run([member], [1])
        rows = input_I[share] if getattr(layer, "input_is_parallel", True) else input_I
        out = layer(rows.to(device)[None])
        return (out[0] if isinstance(out, tuple) else out)[0].float().cpu()

    base_O = output(_NOBODY)
    if len(base_O) != sum(layer.output_partition_sizes):  # gathered from all ranks
        return 0.0
    change_O = output(member) - base_O
    if not getattr(layer, "reduce_results", True):  # other ranks add the rest
        seen_I = torch.zeros_like(input_I)
        seen_I[share] = input_I[share]
        input_I = seen_I
    expected_O = torch.zeros_like(base_O)
    for part, each in factors.items():
        update = each.scaling * (each.lora_b.float() @ (each.lora_a.float() @ input_I.float()))
        rows = method.rows[part]
        expected_O.index_add_(0, rows.here.cpu(), update[rows.there.cpu()])
    if not (base_O.isfinite().all() and change_O.isfinite().all()):
        return 0.0  # the tokens that the engine draws say whose numbers overflow
    size = expected_O.norm().item()
    rounding = torch.finfo(dtype).eps * base_O.norm().item()
    if size == 0 or rounding > _MAX_ROUNDING * size * len(base_O) ** 0.5:
        return 0.0
    along = abs((change_O @ expected_O).item() / size**2 - 1.0)
    apart = max((change_O - expected_O).norm().item() - rounding, 0.0) / size
    return along if math.isnan(along) else max(along, apart)
