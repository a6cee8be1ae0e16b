"""The rows of a step whose requests have heads: which rows a member has, and what it reads there.

Shapes: T tokens and B requests of a step, M members; member m runs T_m tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from prefmix.mixing.prompts.request_heads import RequestHeads


class StepHeads:
    """The heads of a step's requests. On a CPU only."""

    def __init__(
        self,
        heads: Sequence[RequestHeads | None],
        shifts_BM: np.ndarray,
        *,
        query_start_loc: torch.Tensor,
        seq_lens: torch.Tensor,
        input_ids: torch.Tensor,
    ) -> None:
        """Args:
        heads: of the B requests.
        shifts_BM: int64, their shifts.
        query_start_loc: int [B + 1], the first token of each request, then the number of tokens.
        seq_lens: int [B], the length of each request's text with this step's tokens.
        input_ids: int [T], the tokens of the engine's prompts and answers.
        """
        self.shifts_BM = shifts_BM
        # Arrays of a few numbers: numpy's calls take a fraction of torch's time.
        starts, own_lens_B = query_start_loc.numpy(), seq_lens.numpy()[: len(heads)]
        lengths_B = np.diff(starts)
        first_B = own_lens_B - lengths_B
        self._rows_T = np.repeat(np.arange(len(heads)), lengths_B)
        self._positions_T = np.arange(starts[-1]) + (first_B - starts[:-1])[self._rows_T]
        self._input_ids = input_ids
        self._ids: dict[int, torch.Tensor] = {}
        for row, each in enumerate(heads):
            if each is not None and first_B[row] < each.longest:
                self._write(each, int(starts[row]), int(first_B[row]), int(own_lens_B[row]))

    def _write(self, heads: RequestHeads, start: int, first: int, end: int) -> None:
        """Puts the part of a request's heads that the step reads in the place of the engine's.

        Args:
          start: place in the step of the request's first token.
          first, end: engine positions of the step's part of the request.
        """
        end = min(end, heads.longest)
        for member, (ids, shift) in enumerate(zip(heads.ids_M, heads.shifts_M, strict=True)):
            begin = max(first, shift)
            if ids is None or begin >= end:
                continue
            own = self._ids.setdefault(member, self._input_ids.clone())
            at = start + begin - first
            part = torch.from_numpy(ids[begin - shift : end - shift])
            own[at : at + len(part)] = part.to(own.dtype)

    def tokens(self, member: int, among: torch.Tensor | None) -> torch.Tensor:
        """int64 [T_m], the tokens of the step that a member has a row for: of these, or of all."""
        has_begun_T = self._positions_T >= self.shifts_BM[self._rows_T, member]
        if among is None:
            return torch.from_numpy(np.flatnonzero(has_begun_T))
        tokens = among.numpy()
        return torch.from_numpy(tokens[has_begun_T[tokens]])

    def inputs(
        self, member: int, tokens: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A member's own token ids and positions at these tokens.

        Args:
          tokens: int64 [T_m].
          positions: int [..., T], of the engine's prompt.
        """
        ids = self._ids.get(member, self._input_ids)
        shifts = torch.from_numpy(self.shifts_BM[self._rows_T[tokens.numpy()], member])
        return ids[tokens], positions[..., tokens] - shifts
