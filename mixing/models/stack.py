"""Rows of several members in one pass of a shared trunk: which rows belong to whom.

Shapes: R rows of the stack, R_m rows of member m, K adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Stack:
    """The members whose rows the pass under way holds. Set before a pass, read by all layers."""

    def __init__(self, *, num_members: int, num_adapters: int, max_rows: int = 0) -> None:
        """Args:
        max_rows: the most rows of a pass; 0 if all running members always have equally many.
        """
        self.num_adapters = num_adapters
        self.takes_any_rows = max_rows > 0
        # One storage for every pass: a compiled graph keeps the tensors it was traced with.
        self._owners = torch.zeros((max_rows, num_adapters), dtype=torch.bool, device="cpu")
        self.bounds = torch.zeros((num_adapters, 2), dtype=torch.int64, device="cpu")
        """First row and end of each adapter's rows; unused if members have equally many rows."""
        self.run(range(num_members))

    def run(self, members: Sequence[int], lengths: Sequence[int] | None = None) -> None:
        """Sets the members of the next pass, in this order.

        Args:
          lengths: R_m, the number of rows of each member; None if they are equal.
        """
        self.members = list(members)
        self.lengths = None if lengths is None else list(lengths)
        if self.lengths is None:
            return
        self._owners[: sum(self.lengths)] = False
        self.bounds.zero_()
        start = 0
        for member, length in zip(self.members, self.lengths, strict=True):
            if member < self.num_adapters:  # the reference is no adapter
                self._owners[start : start + length, member] = True
                self.bounds[member] = torch.tensor([start, start + length])
            start += length

    def owners(self, num_rows: int) -> torch.Tensor:
        """bool [R, K]: True if the row belongs to the adapter; unused if members have equally many
        rows."""
        return self._owners[:num_rows]

    def split(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Splits [R, ...] into each running member's part [R_m, ...]."""
        if self.lengths is None:
            length = rows.shape[0] // len(self.members)
            return [rows.narrow(0, place * length, length) for place in range(len(self.members))]
        return torch.split(rows, self.lengths)

    @property
    def with_adapter(self) -> list[int]:
        """The running members that have an adapter; they come before the reference."""
        return [member for member in self.members if member < self.num_adapters]
