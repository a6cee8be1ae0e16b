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

from prefmix.mixing.kernels.scaled_update import scaled, scaled_update
from prefmix.mixing.slots.factors import used_slots


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
        num_slots: int = 0,
    ) -> None:
        """Args:
        adapter_members: the member of each adapter, ascending; the others have none.
        max_rows: the most rows of a pass.
        takes_any_rows: false if all running members always have equally many rows.
        num_slots: the last adapters that are slots, whose factors are kept apart on a CPU.
        """
        self.num_slots = num_slots
        self._adapter_of = {member: index for index, member in enumerate(adapter_members)}
        self.takes_any_rows = takes_any_rows
        self.members = list(range(num_members))
        self.lengths: list[int] | None = None
        # One storage for every pass: a compiled graph keeps the tensors it was traced with.
        shape = (max_rows, len(adapter_members))
        self._scales_RK = torch.zeros(shape, dtype=torch.float32, device=device)
        own_MK = torch.zeros(num_members, len(adapter_members), dtype=torch.float32)
        for member, index in self._adapter_of.items():
            if member < num_members:
                own_MK[member, index] = 1.0
        self._own_MK = own_MK.to(device)
        self._is_padding_R = torch.zeros(max_rows, dtype=torch.bool, device=device)
        self.slots_used = torch.zeros(4, dtype=torch.int64)
        """The pass's rows and slots as `used_slots` finds them, on a CPU."""

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
        scales_RK = self._scales_RK[: sum(lengths)]
        if self.takes_any_rows or len(members) < len(self._own_MK):
            self._set_each(scales_RK, lengths, scales_TK)
        else:  # on a GPU: two launches
            scales_MTK = scales_RK.view(len(members), lengths[0], self._own_MK.shape[1])
            scales_MTK.copy_(self._own_MK[:, None])
            if scales_TK is not None:
                scales_MTK[0].copy_(scales_TK)
        self._note_slots(len(scales_RK))

    def set_scales(
        self, members_R: torch.Tensor, scales_SK: torch.Tensor, slots_F: torch.Tensor
    ) -> None:
        """Sets the scales of rows of any members, in two launches.

        Args:
          members_R: int64, the member of each row; the F rows of the first member come first.
          scales_SK: float32, scales of the first member's rows by request slot.
          slots_F: the request slot of each of them.
        """
        num_rows, num_first = len(members_R), len(slots_F)
        torch.index_select(self._own_MK, 0, members_R, out=self._scales_RK[:num_rows])
        torch.index_select(scales_SK, 0, slots_F, out=self._scales_RK[:num_first])
        self._note_slots(num_rows)

    def _note_slots(self, num_rows: int) -> None:
        if self.num_slots and self._scales_RK.is_cpu:
            for place, each in enumerate(used_slots(self.slot_scales(num_rows))):
                self.slots_used[place] = each

    def _set_each(
        self, scales_RK: torch.Tensor, lengths: Sequence[int], scales_TK: torch.Tensor | None
    ) -> None:
        scales_RK.zero_()
        start = 0
        for member, length in zip(self.members, lengths, strict=True):
            own_TK = scales_RK[start : start + length]
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

    def scaled(self, low: torch.Tensor, num_adapters: int | None = None) -> torch.Tensor:
        """Scales low-rank inputs [R, n * rank] by each row's scales of the first n adapters, or of
        all."""
        return scaled(low, self._scales_RK[: low.shape[0], :num_adapters])

    def updated(
        self,
        out: torch.Tensor,
        low: torch.Tensor,
        up: torch.Tensor,
        num_adapters: int | None = None,
    ) -> torch.Tensor:
        """Adds the updates of the first n adapters, or of all, to a layer's outputs, by each row's
        scales.

        Args:
          out: [R, outputs].
          low: low-rank inputs [R, n * rank].
          up: lora_B of n adapters, [n * rank, outputs].
        """
        if self.takes_any_rows:
            return torch.addmm(out, self.scaled(low, num_adapters), up)
        return scaled_update(out, low, self._scales_RK[: low.shape[0], :num_adapters], up)

    def slot_scales(self, num_rows: int) -> torch.Tensor:
        """float32 [R, S], each row's scales of the slots."""
        return self._scales_RK[:num_rows, -self.num_slots :]

    def split(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Splits [R, ...] into each running member's part [R_m, ...]."""
        if self.lengths is None:
            length = rows.shape[0] // len(self.members)
            return [rows.narrow(0, place * length, length) for place in range(len(self.members))]
        return torch.split(rows, self.lengths)


class StackedInputs:
    """The inputs of all members, in the same places in each pass: CUDA graphs of a pass's pieces
    read them where they lay when they were captured."""

    def __init__(self, max_rows: int) -> None:
        """Args: max_rows: the most rows of a pass."""
        self._max_rows = max_rows
        self._kept: list[torch.Tensor] = []

    def of(self, inputs: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """Args: inputs: per input what each member reads, [..., R_m].
        Returns: per input [..., R], member by member."""
        if not self._kept:
            shapes = [(*parts[0].shape[:-1], self._max_rows) for parts in inputs]
            self._kept = [
                parts[0].new_zeros(shape) for parts, shape in zip(inputs, shapes, strict=True)
            ]
        return [
            torch.cat(list(parts), -1, out=kept[..., : sum(each.shape[-1] for each in parts)])
            for parts, kept in zip(inputs, self._kept, strict=True)
        ]
