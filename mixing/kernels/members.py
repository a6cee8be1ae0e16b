"""Input checks of all kernels: the members that take part, and the agreement of their tensors.

Shapes: N rows, M members, W width of a member's tensor (vocabulary or hidden size).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Present(NamedTuple):
    """The members that ran, as lists of one length: operators take no optional list entries."""

    tensors: list[torch.Tensor]
    """Per present member [N, W]."""
    columns: list[int]
    """The column of the weights that belongs to each."""
    soft_caps: list[float]
    """0 means none."""
    scales: list[float]


def present_members(
    tensors: torch.Tensor | Sequence[torch.Tensor | None],
    weights_NM: torch.Tensor,
    *,
    what: str,
    soft_cap: Sequence[float | None] | None = None,
    scale: Sequence[float] | None = None,
) -> Present:
    """Checks the inputs of a call and leaves out the members that did not run.

    Args:
      tensors: [N, M, W], or per member [N, W_m] or None; any float dtypes.
      weights_NM: float32 [N, M], on the same device.
      what: the tensors' name in messages.
      soft_cap, scale: per member; positive.
    Raises: ValueError if shapes, dtypes or devices disagree or no member ran. Values are not
      checked: that would stall a GPU.
    """
    members = _one_by_one(tensors, what)
    if weights_NM.dtype != torch.float32 or weights_NM.dim() != 2:
        raise ValueError(
            f"weights must be float32 [N, M]; got {weights_NM.dtype} {list(weights_NM.shape)}"
        )
    num_rows, num_members = weights_NM.shape
    if len(members) != num_members:
        raise ValueError(f"weights have {num_members} columns for {len(members)} members' {what}")
    caps = _per_member("soft_cap", soft_cap, members, none=0.0)
    scales = _per_member("scale", scale, members, none=1.0)
    present = Present([], [], [], [])
    for column, tensor in enumerate(members):
        if tensor is None:
            continue
        if tensor.dim() != 2 or tensor.shape[0] != num_rows or tensor.shape[1] == 0:
            raise ValueError(
                f"{what} of member {column} must be [{num_rows}, W] with W > 0, as the weights have"
                f" {num_rows} rows; got {list(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{what} of member {column} must be floats; got {tensor.dtype}")
        if tensor.device != weights_NM.device:
            raise ValueError(
                f"{what} of member {column} are on {tensor.device}, weights on {weights_NM.device}"
            )
        present.tensors.append(tensor)
        present.columns.append(column)
        present.soft_caps.append(caps[column])
        present.scales.append(scales[column])
    if not present.tensors:
        raise ValueError(f"no member has {what}; at least one must run")
    return present


def _one_by_one(
    tensors: torch.Tensor | Sequence[torch.Tensor | None], what: str
) -> Sequence[torch.Tensor | None]:
    if not isinstance(tensors, torch.Tensor):
        return tensors
    if tensors.dim() != 3:
        raise ValueError(f"{what} in one tensor must be [N, M, W]; got {list(tensors.shape)}")
    return tensors.unbind(dim=1)


def _per_member(
    name: str,
    values: Sequence[float | None] | None,
    members: Sequence[torch.Tensor | None],
    *,
    none: float,
) -> list[float]:
    if values is None:
        return [none] * len(members)
    if len(values) != len(members):
        raise ValueError(f"{name} has {len(values)} entries for {len(members)} members")
    if not all(value is None or value > 0 for value in values):
        raise ValueError(f"{name} must be positive, or None for a member without; got {[*values]}")
    return [none if value is None else value for value in values]
