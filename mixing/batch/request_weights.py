"""Which weights belong to which token of a step, for both of vLLM's model runners.

Every running request owns one row of a table [S, M]. V1 keeps rows in batch order and tells moves
through a logits processor's `update_state`; V2 keeps fixed slots and tells the model state. Either
way the model asks for two things per step: `token_weights`, float32 [T, M], and `active`, which of
the M members have to run at all.

Nothing here raises on user data: an exception in a worker ends the server, so requests are refused
at admission (`prefmix.mixing.engine.admission`) and a vector that slipped through becomes the
default weights.

Shapes: S rows or slots, M members, T tokens of a step.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prefmix.mixing import wire
from prefmix.mixing.simplex import WeightsError, check_weights
from prefmix.mixing.spec import CONFIG_KEY, MixtureSpec

if TYPE_CHECKING:
    from vllm.config import VllmConfig


_SMALLEST = float(np.finfo(np.float32).tiny)
"""What is smaller is zero, or may be taken for it, once weights are float32."""


SCHEDULER_PATH = "prefmix.mixing.engine.scheduler.mixture_scheduler"
"""The scheduler that keeps cache blocks of different sets of members apart, as vLLM imports it."""


def can_skip(vllm_config: VllmConfig) -> bool:
    """Whether members without weight may be skipped: only if their cache blocks are kept apart."""
    return vllm_config.scheduler_config.scheduler_cls == SCHEDULER_PATH


def spec_of(vllm_config: VllmConfig) -> MixtureSpec:
    """The mixture that an engine serves, read from its model config."""
    return MixtureSpec.from_dict(getattr(vllm_config.model_config.hf_config, CONFIG_KEY))


def weights_of_request(
    extra_args: Mapping[str, Any] | None, spec: MixtureSpec
) -> tuple[float, ...]:
    """The M weights of a request: those it carries, or uniform ones. Never raises."""
    weights = wire.from_extra_args(extra_args)
    if weights is None:
        return spec.uniform_weights
    try:
        checked = check_weights(
            weights, num_members=spec.num_members, weight_space=spec.weight_space
        )
    except WeightsError:
        return spec.uniform_weights
    # Whoever asks whether a weight is zero, cache or engine, has to hear what float32 will say.
    return tuple(0.0 if abs(weight) < _SMALLEST else weight for weight in checked)


def rows_of_tokens(query_start_loc: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """The batch row of each token, without a device sync.

    Args:
      query_start_loc: int [R + 1], the first token of each row, then the number of tokens.
      num_tokens: T, which may include padding: padding tokens get the last row.
    Returns: int64 [T].
    """
    tokens_T = torch.arange(num_tokens, dtype=query_start_loc.dtype, device=query_start_loc.device)
    rows_T = torch.searchsorted(query_start_loc[1:].contiguous(), tokens_T, right=True)
    return rows_T.clamp_(max=query_start_loc.shape[0] - 2)


class WeightTable:
    """The weights of running requests by batch row (V1), on the host and on the device."""

    def __init__(self, spec: MixtureSpec, *, num_rows: int, device: torch.device) -> None:
        self.spec = spec
        self.host_SM = np.tile(np.asarray(spec.uniform_weights, dtype=np.float32), (num_rows, 1))
        self.device_SM = torch.from_numpy(self.host_SM.copy()).to(device)
        self.num_active_rows = 0
        self.measured: list[str | None] = [None] * num_rows
        """Under what each row's figures are to be kept, if at all."""

    def write(self, row: int, extra_args: Mapping[str, Any] | None) -> None:
        """Gives `row` the weights of a new request, whatever stood there before."""
        self.host_SM[row] = weights_of_request(extra_args, self.spec)
        self.measured[row] = wire.measured_as(extra_args)

    def copy_row(self, source: int, target: int) -> None:
        """Moves a request's weights to another row."""
        self.host_SM[target] = self.host_SM[source]
        self.measured[target] = self.measured[source]

    def swap_rows(self, row: int, other: int) -> None:
        """Exchanges two requests' weights."""
        self.host_SM[[row, other]] = self.host_SM[[other, row]]
        self.measured[row], self.measured[other] = self.measured[other], self.measured[row]

    def flush(self, num_active_rows: int) -> None:
        """Makes the host's state the device's; rows past `num_active_rows` belong to nobody."""
        self.num_active_rows = num_active_rows
        # From pageable memory the copy is ordered on the stream and done with the source on return.
        self.device_SM[:num_active_rows].copy_(torch.from_numpy(self.host_SM[:num_active_rows]))

    def token_weights(self, query_start_loc: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """float32 [T, M]: each token's row of the table."""
        return self.device_SM[rows_of_tokens(query_start_loc, num_tokens)]

    def active_members(self) -> Sequence[bool]:
        """Which members any running request gives weight to."""
        return active_members(self.host_SM[: self.num_active_rows])


def active_members(weights_RM: np.ndarray) -> list[bool]:
    """Per member: does any row give it a non-zero weight? All of them when there is no row."""
    if not len(weights_RM):
        return [True] * weights_RM.shape[1]
    return [bool(active) for active in (weights_RM != 0).any(axis=0)]


# V1 builds the logits processor and the model apart and shows neither to the other; both see the
# same compilation config, which lives exactly as long as its engine.
_tables: dict[int, WeightTable] = {}


def table_of_engine(vllm_config: VllmConfig, device: torch.device) -> WeightTable:
    """The one WeightTable of this worker's engine (V1), made on first use."""
    owner = vllm_config.compilation_config
    key = id(owner)
    if key not in _tables:
        _tables[key] = WeightTable(
            spec_of(vllm_config),
            num_rows=vllm_config.scheduler_config.max_num_seqs,
            device=device,
        )
        weakref.finalize(owner, _tables.pop, key, None)
    return _tables[key]


def apply_batch_update(
    table: WeightTable,
    *,
    batch_size: int,
    added: Iterable[tuple[int, Mapping[str, Any] | None]],
    moved: Iterable[tuple[int, int, bool]],
) -> None:
    """Follows one change of V1's persistent batch.

    Args:
      batch_size: running requests after the change.
      added: (row, extra_args) of new requests; they may replace others.
      moved: (source, target, is_swap), applied after `added`, in order.
    Source: vllm.v1.sample.logits_processor.interface.BatchUpdate.
    """
    for row, extra_args in added:
        table.write(row, extra_args)
    for source, target, is_swap in moved:
        (table.swap_rows if is_swap else table.copy_row)(source, target)
    table.flush(batch_size)
