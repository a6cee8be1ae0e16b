"""Finds the parameters that a checkpoint leaves unfilled.

vLLM reserves memory for parameters without filling it, and takes a fused parameter, such as the
projections to q, k and v, for loaded once any part of it was. If the files lack a part, the model
computes with whatever the memory held. So what is reserved is noted while the model is built and
marked before it is loaded. Marks that are left afterwards are parts that the files lack.

Only the first row and the first column of a matrix are marked: a part is a block of whole rows or
of whole columns. That costs no more memory than loading does, and no time that can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

USUAL_FUSIONS = {
    "qkv_proj": ["q_proj", "k_proj", "v_proj"],
    "gate_up_proj": ["gate_proj", "up_proj"],
}
"""The layers of models that fuse them while loading without declaring it, such as GPT-J."""

_RESERVING = {
    torch.empty,
    torch.empty_like,
    torch.empty_strided,
    torch.Tensor.new_empty,
    torch.Tensor.new_empty_strided,
}
_SCALES = (
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_global_scale",
    "weight_zero_point",
    "input_scale",
    "input_global_scale",
    "input_zero_point",
    "scales",
    "qzeros",
)
"""Parameters of quantised layers, of which vLLM fills some itself to see if they were loaded."""

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NAN_OF_SIZE = {2: 0x7FE5, 4: 0x7FE5A5A5, 8: 0x7FE5A5A5A5A5A5A5}
"""The bits of a number that no checkpoint has: NaN in every format, and not the usual one."""

_ENOUGH_BYTES = 8
"""Marks of integers, which may be a checkpoint's, count if as many bytes of them follow each
other."""


def built(make: Callable[[], Any]) -> Any:
    """The model that `make` builds, with a note of the parameters that it does not fill."""
    with _Reservations() as reservations:
        model = make()
    model.reserved_parameters = reservations.end(model)
    return model


def mark(model: Any) -> None:
    """Marks the parameters of a model from `built` that its checkpoint must fill."""
    parameters = dict(model.named_parameters())
    for name in model.reserved_parameters:
        for line in _lines(parameters[name].data):
            line.copy_(_marks(line))


def lacking(model: Any, tensors: Collection[str]) -> list[str]:
    """The parameters that are not filled after `mark` and loading, in the model's order.

    Args:
      tensors: the names of all tensors that the files have.
    Returns: names as in the checkpoint where the part of a fused parameter is known, else vLLM's.
    """
    parameters = dict(model.named_parameters())
    found: list[str] = []
    for name in model.reserved_parameters:
        if name in parameters and (left := _left(parameters[name].data)):
            found.extend(_names_of(model, name, left))
    found.extend(_unloaded_online(model))
    found.extend(_unmatched_scales(model, tensors))
    return list(dict.fromkeys(found))


class _Reservations(TorchFunctionMode):
    """Marks the start of all memory that is reserved and not filled while a model is built."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _RESERVING and _can_be_marked(made):
            start = _start(made)
            start.copy_(_marks(start))
            self._tensors.append(made)
        return made

    def end(self, model: nn.Module) -> list[str]:
        """Removes the marks. Returns: the parameters that had some."""
        names = [
            name
            for name, parameter in model.named_parameters()
            if _can_be_marked(parameter) and _is_marked(_start(parameter.data))
        ]
        for tensor in self._tensors:
            start = _start(tensor)
            if _is_marked(start):  # scratch memory may be read before it is written
                start.zero_()
        self._tensors.clear()
        return names


def _can_be_marked(tensor: object) -> bool:
    if not isinstance(tensor, torch.Tensor) or isinstance(tensor, nn.UninitializedParameter):
        return False
    size = tensor.element_size()
    is_plain = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_complex()
    is_known = size in _INTEGER_OF_SIZE and tensor.dtype is not torch.bool
    return is_plain and is_known and tensor.numel() >= _enough(tensor)


def _enough(tensor: torch.Tensor) -> int:
    """The number of marked elements one after the other that no checkpoint can have."""
    is_nan = tensor.is_floating_point() and tensor.element_size() in _NAN_OF_SIZE
    return 1 if is_nan else max(1, _ENOUGH_BYTES // tensor.element_size())


def _start(tensor: torch.Tensor) -> torch.Tensor:
    """The first elements in memory."""
    return tensor.detach().as_strided((_enough(tensor),), (1,), tensor.storage_offset())


def _lines(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """The first column and the first row of a matrix, or of each of many."""
    if tensor.dim() < 2:
        return [tensor.reshape(-1)]
    return [tensor[..., 0], tensor[..., 0, :]]


def _marks(line: torch.Tensor) -> torch.Tensor:
    """Marks for a line [..., n], in its dtype: [n] of integers, otherwise [1]."""
    size = line.element_size()
    integer = _INTEGER_OF_SIZE[size]
    if _enough(line) == 1 and line.is_floating_point():
        return torch.tensor([_NAN_OF_SIZE[size]], dtype=integer, device=line.device).view(
            line.dtype
        )
    places = torch.arange(line.shape[-1], dtype=torch.int64, device=line.device)
    # Numbers as irregular as random ones: the golden ratio's bits, and the high half of a product.
    bits = ((places + 1) * 0x1E3779B97F4A7C15 & (2**63 - 1)) >> max(0, 63 - 8 * size)
    return bits.to(integer).view(line.dtype)


def _is_marked(line: torch.Tensor) -> bool:
    return bool(_marked(line).all())


def _marked(line: torch.Tensor) -> torch.Tensor:
    """Bool, the elements of a line that have their marks."""
    integer = _INTEGER_OF_SIZE[line.element_size()]
    return line.contiguous().view(integer) == _marks(line).view(integer)


def _left(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Per line of a parameter with unfilled parts, bool [n], its unfilled elements; else empty."""
    found = []
    for line in _lines(tensor):
        marked, enough = _marked(line).flatten(), _enough(line)
        if line.shape[-1] < enough:
            marked = torch.zeros_like(marked)
        elif enough > 1:
            runs = marked.unfold(0, enough, 1).all(dim=1)
            marked = torch.zeros_like(marked)
            for shift in range(enough):
                marked[shift : shift + len(runs)] |= runs
        found.append(marked.reshape(line.shape))
    return found if any(bool(each.any()) for each in found) else []


def _names_of(model: Any, name: str, left: Sequence[torch.Tensor]) -> Iterator[str]:
    """The checkpoint's names of a parameter's unfilled parts; its own name if they are unknown."""
    path, _, last = name.rpartition(".")
    parts = _parts_of(model, path)
    sizes = list(getattr(model.get_submodule(path), "output_partition_sizes", ()))
    for line in left:
        of_part = {sum(sizes): sizes, len(parts): [1] * len(parts)}.get(line.numel())
        if of_part is None or len(of_part) != len(parts) or not line.any():
            continue
        for part, own in zip(parts, torch.split(line.flatten(), of_part), strict=True):
            if own.any():
                yield f"{part}.{last}"
        return
    yield name


def _parts_of(model: Any, path: str) -> list[str]:
    """The checkpoint's layers that vLLM fuses into one, in order; none for any other layer."""
    stem, dot, last = path.rpartition(".")
    fusions = {**USUAL_FUSIONS, **getattr(model, "packed_modules_mapping", {})}
    return [f"{stem}{dot}{part}" for part in fusions.get(last, ())]


def _unloaded_online(model: nn.Module) -> Iterator[str]:
    """The layers that are quantised while loading and got less than all of their values."""
    for path, layer in model.named_modules():
        method = getattr(layer, "quant_method", None)
        method = getattr(method, "inner", method)  # of a layer with adapters
        if getattr(method, "uses_meta_device", False):
            from vllm.model_executor.layers.linear import LinearBase
            from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

            info = get_layerwise_info(layer)
            is_short = (info.load_numel or 0) < (info.load_numel_total or 0)
            if isinstance(layer, LinearBase) and info.can_load() and is_short:
                yield path


def _unmatched_scales(model: Any, tensors: Collection[str]) -> Iterator[str]:
    """The scales that some parts of a fused layer have in the files, and others do not."""
    of_layer: dict[str, set[str]] = {}
    for name in tensors:
        layer, _, last = name.rpartition(".")
        of_layer.setdefault(layer, set()).add(last)
    fusions = {**USUAL_FUSIONS, **getattr(model, "packed_modules_mapping", {})}
    for layer in of_layer:
        stem, dot, first = layer.rpartition(".")
        for parts in fusions.values():
            if first != parts[0]:
                continue
            there = [each for part in parts if (each := f"{stem}{dot}{part}") in of_layer]
            for scale in _SCALES:
                have = [part for part in there if scale in of_layer[part]]
                if have and len(have) < len(there):
                    yield from (f"{part}.{scale}" for part in there if part not in have)
