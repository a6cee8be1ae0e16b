"""Slots' factors of one linear layer of a CPU, added to what the layer computes.

A CPU's kernels repack a layer's matrix once, so what joins it cannot change while the engine runs.
The factors of the start's adapters join it (prefmix.mixing.models.joined_adapters). Those of slots
stay apart, and are multiplied only in passes that have rows with one of them. Compiled code does
not know which passes these are, so that is found out inside an operator.

Shapes: S slots, R ranks of a slot, I inputs, O outputs, N rows.
"""

# torch.library has no types.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch

from prefmix.mixing.kernels.scaled_update import scaled

_LIBRARY = torch.library.Library("prefmix", "FRAGMENT")


def add_slot_factors(
    out_NO: torch.Tensor,
    x_NI: torch.Tensor,
    down_SRI: torch.Tensor,
    up_SRO: torch.Tensor,
    scales_NS: torch.Tensor,
    used: torch.Tensor,
) -> None:
    """Adds the slots' updates to a layer's output, in place.

    Args:
      scales_NS: float32, the scale of each slot in each row.
      used: int64 [4], as `used_slots` finds it.
    """
    if not torch.compiler.is_compiling() and not used[1]:
        return
    torch.ops.prefmix.add_slot_factors(out_NO, x_NI, down_SRI, up_SRO, scales_NS, used)


def used_slots(scales_NS: torch.Tensor) -> tuple[int, int, int, int]:
    """The first row with a slot's scale other than 0, and the one behind the last; then the first
    such slot, and the one behind the last. Zeros if there is none."""
    found = (scales_NS != 0).nonzero()
    if not len(found):
        return 0, 0, 0, 0
    (row, slot), (last_row, last_slot) = (each.tolist() for each in found.aminmax(dim=0))
    return row, last_row + 1, slot, last_slot + 1


_FEW_ROWS = 8
"""Up to so many rows, a CPU multiplies small matrices faster in float32 than in fewer bits."""


def _add_slot_factors(
    out_NO: torch.Tensor,
    x_NI: torch.Tensor,
    down_SRI: torch.Tensor,
    up_SRO: torch.Tensor,
    scales_NS: torch.Tensor,
    used: torch.Tensor,
) -> None:
    row, end_row, slot, end_slot = used.tolist()
    if not end_row:
        return
    rows, slots = slice(row, end_row), slice(slot, end_slot)
    x, scales, out = x_NI[rows], scales_NS[rows, slots], out_NO[rows]
    down, up = (each[slots].flatten(0, 1) for each in (down_SRI, up_SRO))
    if len(x) <= _FEW_ROWS:
        low = x.float() @ down.float().T
        out.add_(scaled(low, scales) @ up.float())
    else:
        out.addmm_(scaled(x @ down.T, scales), up)


def _nothing(*_: torch.Tensor) -> None:
    """Tensors without memory get nothing added."""


_LIBRARY.define(
    "add_slot_factors(Tensor(a!) out, Tensor x, Tensor down, Tensor up, Tensor scales, Tensor used)"
    " -> ()"
)
_LIBRARY.impl("add_slot_factors", _add_slot_factors, "CPU")
torch.library.register_fake("prefmix::add_slot_factors", _nothing, lib=_LIBRARY)
