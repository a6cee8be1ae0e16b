"""Finds rows from which no token can be drawn, and the policy that broke them.

A policy whose numbers overflow, or whose checkpoint holds a NaN, spoils the mixture of every row
that gives it weight, and of no other. Such a row gets a code, which travels to the scheduler with
the step's tokens (prefmix.mixing.engine.worker_extension). The scheduler ends the request with an
error (prefmix.mixing.engine.scheduler).

Shapes: N logits rows, M members, V vocabulary, D_m hidden width of member m.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from prefmix.mixing.batch.request_mixing import RequestMixing
from prefmix.mixing.spec import MixtureSpec


def find_broken_rows(
    mixed_NV: torch.Tensor,
    hidden: Sequence[torch.Tensor],
    weights_NM: torch.Tensor,
    logits: Sequence[torch.Tensor | None] | None = None,
    tops_NQ: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Finds the broken rows and makes them harmless for the sampler.

    A row is broken if its largest logit is not finite: NaN or +inf somewhere, or nothing but -inf.
    The blame goes to the first member with weight in the row whose hidden state is not finite or
    whose logits are broken. Broken rows of `mixed_NV` are overwritten with zeros. Sound rows cost
    one pass for the largest logit. On a GPU that is one kernel, which has nothing of that size to
    read where the logits were mixed in one pass, and no value is read back, which would wait.

    Args:
      mixed_NV: natural-log scale, in float32 or the model's dtype; changed in place.
      hidden: per member [N, D_m].
      weights_NM: float32.
      logits: per member [N, V_m], or None for members without; used on a CPU only.
      tops_NQ: of `mix_in_one_pass`, which mixed the logits; used on a GPU only.
    Returns: int32 [N] on the device: 0 for a sound row, m + 1 if member m is to blame, M + 1 if no
      single member is; None if all rows are known to be sound.
    """
    if not mixed_NV.is_cpu:
        # Imported here, so that the package needs no Triton where there is no GPU.
        from prefmix.mixing.kernels.broken_rows_triton import broken_rows_triton

        return broken_rows_triton(mixed_NV, hidden, weights_NM, tops_NQ)
    largest_N = mixed_NV.amax(dim=-1)
    if math.isfinite(largest_N.sum().item()):
        return None
    is_sound_N = torch.isfinite(largest_N)
    if bool(is_sound_N.all()):  # the sum alone may have overflowed
        return None
    num_members = weights_NM.shape[1]
    is_blamed_NM = torch.stack([~torch.isfinite(each).all(dim=-1) for each in hidden], dim=1)
    if logits is not None:
        for member, each in enumerate(logits):
            if each is not None:
                is_blamed_NM[:, member] |= ~torch.isfinite(each.amax(dim=-1))
    is_blamed_NM &= weights_NM != 0
    first_N = is_blamed_NM.to(torch.int32).argmax(dim=-1).to(torch.int32)
    codes_N = torch.where(is_blamed_NM.any(dim=-1), first_N + 1, num_members + 1)
    mixed_NV.masked_fill_(~is_sound_N[:, None], 0.0)
    return codes_N.masked_fill_(is_sound_N, 0)


def names_of(code: int, request: RequestMixing, spec: MixtureSpec) -> tuple[str, ...]:
    """The policies that a code other than 0 blames: one, or all with weight in the request."""
    if 1 <= code <= spec.num_kv_members and not request.mixes_parameters:
        return (spec.member_names[code - 1],)
    with_weight = zip(spec.member_names, request.weights_M, strict=True)
    return tuple(name for name, weight in with_weight if weight != 0)
