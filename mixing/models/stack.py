"""Rows of several members in one pass of a shared trunk: which rows belong to whom, and how much of
each adapter they get.

Each row gets the base and all adapters, each times its own scale. A row of the first member has the
scales of its token: 1 for the first adapter where the request mixes logits, the weights of all
where it mixes parameters. Rows of another member have 1 for its own adapter, if it has one.

Shapes: T tokens, R rows of the stack, R_m rows of member m, M members, K adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch


class Stack:
    """The members whose rows the pass under way holds. Set before a pass, read by all layers."""

    def __init__(
        self,
        *,
        num_members: int,
        adapter_members: Sequence[int],
        max_rows: int,
        takes_any_rows: bool,
        device: torch.device,
    ) -> None:
        """Args:
        adapter_members: the member of each adapter, ascending; the others have none.
        max_rows: the most rows of a pass.
        takes_any_rows: false if all running members always have equally many rows.
        """
        self._adapter_of = {member: index for index, member in enumerate(adapter_members)}
        self.takes_any_rows = takes_any_rows
        self.members = list(range(num_members))
        self.lengths: list[int] | None = None
        # One storage for every pass: a compiled graph keeps the tensors it was traced with.
        shape = (max_rows, len(adapter_members))
        self._scales_RK = torch.zeros(shape, dtype=torch.float32, device=device)
        self._is_padding_R = torch.zeros(max_rows, dtype=torch.bool, device=device)

    def run(
        self, members: Sequence[int], lengths: Sequence[int], scales_TK: torch.Tensor | None = None
    ) -> None:
        """Sets the members of the next pass, in this order.

        Args:
          lengths: R_m, the number of rows of each member.
          scales_TK: float32, the scales of the first member's rows; None for its own adapter alone.
        """
        self.members = list(members)
        self.lengths = list(lengths) if self.takes_any_rows else None
        self._scales_RK[: sum(lengths)] = 0.0
        start = 0
        for member, length in zip(members, lengths, strict=True):
            own_TK = self._scales_RK[start : start + length]
            if member == 0 and scales_TK is not None:
                own_TK.copy_(scales_TK)
            elif member in self._adapter_of:
                own_TK[:, self._adapter_of[member]] = 1.0
            start += length

    @contextmanager
    def padding(self) -> Iterator[None]:
        """Within this context the routers of experts know the padding among the stack's rows.

        vLLM marks the padding among a step's tokens, which all members have in the same places.
        """
        from vllm.forward_context import get_forward_context, override_forward_context

        context = get_forward_context()
        if context.is_padding is None:
            yield
            return
        copies, length = len(self.members), len(context.is_padding)
        is_padding_R = self._is_padding_R[: copies * length]
        is_padding_R.view(copies, length).copy_(context.is_padding)
        with override_forward_context(replace(context, is_padding=is_padding_R)):
            yield

    def scaled(self, low: torch.Tensor) -> torch.Tensor:
        """Scales low-rank inputs [R, K * rank] by each row's scales of the K adapters."""
        num_rows = low.shape[0]
        scales = self._scales_RK[:num_rows, :, None]
        scaled = low.reshape(num_rows, len(self._adapter_of), -1) * scales
        if low.dtype == torch.float16:
            # Finite factors may overflow here, and another member's adapter must leave no trace in
            # a row, whatever it makes: 0 * inf is NaN.
            scaled = torch.where(scales == 0, 0.0, scaled)
        return scaled.to(low.dtype).reshape(low.shape)

    def split(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Splits [R, ...] into each running member's part [R_m, ...]."""
        if self.lengths is None:
            length = rows.shape[0] // len(self.members)
            return [rows.narrow(0, place * length, length) for place in range(len(self.members))]
        return torch.split(rows, self.lengths)
