"""The way in which one request is mixed, and its use by a step's tokens; for both model runners.

A request's *coefficients* are one row of numbers for all layers and for the mixing after them:

    logits:      | w_1 w_2 ... w_P | 1   0  ...  0  |
    parameters:  |  1   0  ...  0  | w_1 w_2 ... w_K |

The first P weigh the members' hidden states. The last K scale the adapters in the rows of the first
member, here of members 1 to K; each further member's rows have its own adapter alone, if it has
one. So a request that mixes parameters runs the first member only, with all adapters by their
weights. Full checkpoints have no adapters. Members behind the first P are adapters without a KV
cache, which have a scale and no hidden states.

Nothing here raises on user data, because an exception in a worker ends the server. The
logits processor (prefmix.mixing.engine.logits_processor) refuses wrong requests in the front
process; what slipped through has the default weights and mixes logits.

Shapes: R batch rows, M members, the first P of them with a KV cache, K adapters, C = P + K
coefficients, T tokens of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prefmix.mixing import wire
from prefmix.mixing.prompts.request_heads import RequestHeads
from prefmix.mixing.simplex import WeightsError, check_weights
from prefmix.mixing.spec import MixtureSpec

_SMALLEST = float(np.finfo(np.float32).tiny)
"""Smaller weights are zero in float32, or may be taken for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestMixing:
    """The weights of a request, its way of mixing, and whether its tokens are measured."""

    weights_M: tuple[float, ...]
    mixes_parameters: bool = False
    measured_as: str | None = None
    """The key under which the request's figures are kept; None if it is not measured."""
    heads: RequestHeads | None = None
    """The policies' own beginnings of the prompt; None if all read the same."""

    @classmethod
    def of_request(cls, extra_args: Mapping[str, Any] | None, spec: MixtureSpec) -> RequestMixing:
        """Reads what a request carries. Never raises."""
        mixing = wire.mixing_of(extra_args) or spec.mixing
        mixes_parameters = bool(spec.adapter_members) and mixing == "parameters"
        has_heads = spec.has_prompts and not mixes_parameters
        weights_M = _weights_of(extra_args, spec)
        if not mixes_parameters and any(weights_M[spec.num_kv_members :]):
            weights_M = spec.uniform_weights
        return cls(
            weights_M=weights_M,
            mixes_parameters=mixes_parameters,
            measured_as=wire.measured_as(extra_args),
            heads=RequestHeads.of_request(extra_args, spec.num_members) if has_heads else None,
        )

    def coefficients(self, spec: MixtureSpec) -> tuple[float, ...]:
        """The C coefficients."""
        adapted = spec.adapter_members
        if self.mixes_parameters:  # a member without an adapter adds nothing to the base
            first_P = (1.0,) + (0.0,) * (spec.num_kv_members - 1)
            return (*first_P, *(self.weights_M[member] for member in adapted))
        weights_P = self.weights_M[: spec.num_kv_members]
        return (*weights_P, *(float(member == 0) for member in adapted))


def _weights_of(extra_args: Mapping[str, Any] | None, spec: MixtureSpec) -> tuple[float, ...]:
    """The M weights that a request carries, or uniform ones."""
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


def active_members(weights_RP: np.ndarray) -> list[bool]:
    """Per member, True if any row gives it weight; True for all if there is no row."""
    if not len(weights_RP):
        return [True] * weights_RP.shape[1]
    return [bool(active) for active in (weights_RP != 0).any(axis=0)]
