"""The weights of one request, and how a step's rows and tokens use them; for both model runners.

Nothing here raises on user data, because an exception in a worker ends the server. The
logits processor (prefmix.mixing.engine.logits_processor) refuses wrong weights in the front
process; a vector that slipped through becomes the default weights.

Shapes: R batch rows, M members, T tokens of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from prefmix.mixing import wire
from prefmix.mixing.simplex import WeightsError, check_weights
from prefmix.mixing.spec import MixtureSpec

_SMALLEST = float(np.finfo(np.float32).tiny)
"""Smaller weights are zero in float32, or may be taken for it."""


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
    # Scheduler and workers must agree on which weights are zero, so float32 decides for both.
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


def active_members(weights_RM: np.ndarray) -> list[bool]:
    """Per member, True if any row gives it weight; True for all if there is no row."""
    if not len(weights_RM):
        return [True] * weights_RM.shape[1]
    return [bool(active) for active in (weights_RM != 0).any(axis=0)]
