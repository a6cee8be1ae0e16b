"""Statistics of the served mixture: a sample of all tokens, and every token of some requests.

A step is measured after its tokens are drawn: each member's logits of the measured rows go through
`mixture_statistics`. The figures stay on the device until somebody takes them.

Shapes: N rows of a step, R measured rows, M members, the first P of them with a KV cache, F = 3 +
3 M figures a row.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import pad

from prefmix.mixing.batch.request_mixing import RequestMixing
from prefmix.mixing.kernels.mixture_statistics import mixture_statistics
from prefmix.mixing.kernels.one_pass import OnePass
from prefmix.mixing.kernels.tuning import MANY_ROWS
from prefmix.mixing.spec import MixtureSpec

PARTS = ("forward", "mix")
"""The parts of a step whose time is measured."""

_MAX_REQUESTS = 4096
"""Limit of measured requests whose figures nobody has taken; beyond it the oldest are dropped."""


class MeasuredModel(Protocol):
    """The part of a mixture model that the statistics need."""

    @property
    def spec(self) -> MixtureSpec:
        """The mixture."""

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its hidden states."""

    @property
    def hidden_sizes(self) -> list[int]:
        """D_m of each member."""

    @property
    def max_mixed_rows(self) -> int | None:
        """Most rows of logits at a time; None for any number."""

    def mix(self, hidden: Sequence[torch.Tensor], weights_NM: torch.Tensor) -> torch.Tensor | None:
        """Mixed logits; the collector of the step may be handed the members'."""

    def member_logits(self, hidden: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Logits [N, C] of each member; None for members that did not run in this step."""


Logits = list[torch.Tensor | None] | OnePass
"""The members' logits of a step, or what a GPU's pass over them made."""


class MixtureStatisticsCollector:
    """Collects the statistics of the model of one worker."""

    def __init__(self, model: MeasuredModel, *, every: int) -> None:
        """Args:
        every: all tokens of every n-th step are measured; 0 measures no steps.
        """
        self._model = model
        self._every = every
        self._step = 0
        self.is_sampled = False
        """True if the step under way belongs to the sample."""
        self.wants_logits = False
        """True if the members' logits of some of the step's rows will be needed."""
        self.wants_all_logits = False
        """True if the members' logits of all rows will be needed."""
        self.kept: tuple[Sequence[torch.Tensor], torch.Tensor, Logits | None] | None = None
        """The step's hidden states by member, its weights and, if known, its logits by member."""
        self._records: OrderedDict[str, dict[str, list[tuple[torch.Tensor, int]]]] = OrderedDict()
        self._reset()

    def _reset(self) -> None:
        num_members = self._model.spec.num_members
        self._sums_F = torch.zeros(3 + 3 * num_members, dtype=torch.float64)
        self._counts_F = torch.zeros(3 + 3 * num_members, dtype=torch.int64)
        self._pending: list[torch.Tensor] = []
        self._weights: Counter[tuple[float, ...]] = Counter()
        self._num_steps = 0
        self._clocks: list[tuple[str, Any, Any]] = []

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Measures nothing, for few rows and for many, while no request waits: a GPU's kernels are
        compiled, and their configurations are timed, when they first get either.

        The collector must be that of the model's step, which hands it what the mixing makes.
        """
        model = self._model
        self.wants_logits = self.wants_all_logits = True
        num_members = model.spec.num_kv_members
        for num_rows in (1, MANY_ROWS):
            hidden = [
                torch.zeros((num_rows, width), dtype=model.dtype, device=model.device)
                for width in model.hidden_sizes
            ]
            shape = (num_rows, num_members)
            weights = torch.full(shape, 1.0 / num_members, device=model.device)
            tokens = torch.zeros((num_rows, 1), dtype=torch.int64, device=model.device)
            kept = (hidden, weights, None)
            for self.kept in (None, kept):  # other steps mix as well
                if num_members > 1:  # a single policy's logits are not mixed
                    model.mix(hidden, weights)
            assert self.kept is not None
            self._figures(self.kept, slice(None), tokens)
        self.kept = None
        self.wants_logits = self.wants_all_logits = False

    def begin_step(self, requests: Sequence[RequestMixing]) -> None:
        """Starts a step. Args: requests: of its rows."""
        self._step += 1
        self.is_sampled = self._every > 0 and self._step % self._every == 0
        keys = [request.measured_as for request in requests]
        self.wants_logits = self.is_sampled or any(keys)
        self.wants_all_logits = self.is_sampled or (self.wants_logits and all(keys))
        self._keys, self._requests = keys, requests
        self.kept = None

    def keep_logits(self, logits: Logits) -> None:
        """Keeps the members' logits [N, C] of the rows that are being mixed, if the step needs
        them."""
        if self.kept is not None:
            self.kept = (*self.kept[:2], logits)

    def now(self) -> Any:
        """The time, for `took`; on a GPU that of its work, without waiting for it."""
        if self._model.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def took(self, part: str, began: Any) -> None:
        """Adds the time of one of PARTS, which ends now."""
        self._clocks.append((part, began, self.now()))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Measures the time of one of PARTS."""
        began = self.now()
        yield
        self.took(part, began)

    def measure_tokens(
        self, tokens_N1: torch.Tensor, req_ids: Sequence[str], is_drawn_N: np.ndarray
    ) -> None:
        """Measures a step whose tokens are drawn. Never raises: an exception would end the engine.

        Args:
          tokens_N1: int [N, 1], in batch order.
          req_ids: of the N requests.
          is_drawn_N: bool; False for rows whose token is thrown away, as in prompt chunks.
        """
        kept, self.kept = self.kept, None
        if kept is None or len(kept[1]) != len(tokens_N1) or len(self._keys) < len(tokens_N1):
            return
        keys = self._keys[: len(tokens_N1)]
        rows = [row for row, key in enumerate(keys) if is_drawn_N[row] and (self.is_sampled or key)]
        if not rows:
            return
        packed_RF = self._measure(kept, rows, tokens_N1)
        if packed_RF is None:
            return
        if self.is_sampled:
            self._num_steps += 1
            self._pending.append(packed_RF)
            self._weights.update(self._requests[row].weights_M for row in rows)
        for place, row in enumerate(rows):
            key = keys[row]
            if key is not None:
                requests = self._records.setdefault(key, {})
                requests.setdefault(req_ids[row], []).append((packed_RF, place))
        while len(self._records) > _MAX_REQUESTS:
            self._records.popitem(last=False)

    def _measure(
        self,
        kept: tuple[Sequence[torch.Tensor], torch.Tensor, Logits | None],
        rows: list[int],
        tokens_N1: torch.Tensor,
    ) -> torch.Tensor | None:
        weights_NM = kept[1]
        everyone = len(rows) == len(weights_NM)
        pick = slice(None) if everyone else _on_device(rows, weights_NM.device)
        figures = self._figures(kept, pick, tokens_N1)
        if figures is None:
            return None
        spec = self._model.spec
        width = spec.num_members - spec.num_kv_members
        columns = [
            pad(each.to(torch.float32), (0, width)) if each.ndim == 2 else each[:, None]
            for each in figures
        ]
        packed_RF = torch.cat([column.to(torch.float32) for column in columns], dim=1)
        # A member without weight may have run for other rows, but not on all of the row's tokens.
        # Where parameters are mixed, no member has run as itself.
        is_unknown_RM = pad(weights_NM[pick], (0, width)) == 0
        averaged = [self._requests[row].mixes_parameters for row in rows]
        if any(averaged):
            is_unknown_RM |= _on_device(averaged, is_unknown_RM.device)[:, None]
        packed_RF[:, 3:].masked_fill_(is_unknown_RM.repeat(1, 3), torch.nan)
        return packed_RF

    def _figures(
        self,
        kept: tuple[Sequence[torch.Tensor], torch.Tensor, Logits | None],
        pick: slice | torch.Tensor,
        tokens_N1: torch.Tensor,
    ) -> Sequence[torch.Tensor] | None:
        """The statistics of picked rows; None on a rank that does not gather logits."""
        hidden, weights_NM, logits = kept
        if isinstance(logits, OnePass) and logits.statistics is not None:
            found = logits.statistics(tokens_N1[:, 0].to(torch.int64))
            return [each[pick] for each in found]
        tokens_R = tokens_N1[pick, 0].to(torch.int64)
        weights_RM = weights_NM[pick].contiguous()
        if isinstance(logits, list):
            picked = [None if each is None else each[pick] for each in logits]
            return _measured(picked, weights_RM, tokens_R)
        return self._computed([each[pick] for each in hidden], weights_RM, tokens_R)

    def _computed(
        self, hidden: Sequence[torch.Tensor], weights_RM: torch.Tensor, tokens_R: torch.Tensor
    ) -> Sequence[torch.Tensor] | None:
        """The statistics of rows of hidden states, of as many at a time as there is room for."""
        most = self._model.max_mixed_rows
        rows = len(tokens_R) if most is None else max(1, most // len(hidden))
        parts = []
        for start in range(0, len(tokens_R), rows):  # the ranks compute all parts together
            part = slice(start, start + rows)
            logits = self._model.member_logits([each[part] for each in hidden])
            measured = _measured(logits, weights_RM[part], tokens_R[part])
            if measured is not None:
                parts.append(measured)
        return [torch.cat(each) for each in zip(*parts, strict=True)] or None

    def take_sample(self) -> dict[str, Any]:
        """The statistics since the last call: sums over tokens, by member, in nats.

        `kl`, `agreement` and `tokens_by_member` count the tokens of requests that give the member
        weight.
        """
        num_members = self._model.spec.num_members
        for packed_RF in self._pending:
            host_RF = packed_RF.double().cpu()
            is_number = torch.isfinite(host_RF)
            self._sums_F += torch.where(is_number, host_RF, 0.0).sum(0)
            self._counts_F += is_number.sum(0)
        sums, counts = self._sums_F.tolist(), self._counts_F.tolist()
        kl, logprob, agrees = (
            slice(3 + part * num_members, 3 + (part + 1) * num_members) for part in range(3)
        )
        seconds = dict.fromkeys(PARTS, 0.0)
        for part, begin, end in self._clocks:
            if isinstance(begin, float):
                seconds[part] += end - begin
            else:
                end.synchronize()
                seconds[part] += begin.elapsed_time(end) / 1e3
        sample = {
            "steps": self._num_steps,
            "seconds": seconds,
            "tokens": counts[1],
            "entropy": sums[1],
            "kl": sums[kl],
            "agreement": sums[agrees],
            "tokens_by_member": counts[logprob],
            "weights": list(self._weights.items()),
        }
        self._reset()
        return sample

    def take_request(self, key: str, sample: int | None = None) -> dict[str, list[list[float]]]:
        """Returns the figures of a request's tokens and forgets them.

        Args:
          key: the key under which they are kept.
          sample: one of the n samples that vLLM draws as requests "0_ID", "1_ID", ...; None: all.
        Returns: the engine's request id -> F figures per token: log Z, entropy, the mixture's
          log-prob, then per member KL, log-prob and agreement. NaN for a member without weight,
          and for all members where parameters are mixed.
        """
        requests = self._records.get(key, {})
        taken = [req_id for req_id in requests if sample is None or req_id.startswith(f"{sample}_")]
        figures = {}
        for req_id in taken:
            records = requests.pop(req_id)
            rows = [packed_RF[place] for packed_RF, place in records]
            figures[req_id] = torch.stack(rows).tolist()
        if not requests:
            self._records.pop(key, None)
        return figures


def _measured(
    logits: list[torch.Tensor | None], weights_RM: torch.Tensor, tokens_R: torch.Tensor
) -> Sequence[torch.Tensor] | None:
    """The statistics of logits by member; None on a rank that gathers none."""
    if all(each is None for each in logits):
        return None
    return mixture_statistics(logits, weights_RM, tokens_R)


def _on_device(values: list[Any], device: torch.device) -> torch.Tensor:
    """A small tensor of a step's facts on the device; nothing waits for a GPU."""
    is_cuda = device.type == "cuda"
    return torch.tensor(values, pin_memory=is_cuda).to(device, non_blocking=is_cuda)
