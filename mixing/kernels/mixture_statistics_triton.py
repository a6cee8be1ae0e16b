"""The mixture's statistics in Triton: each logit is read once, nothing of that size is written.

This is the online softmax in parallel. The pass over the logits (logits_pass_triton.py) leaves a
few sums of each part of a row's vocabulary; the kernel here merges a row's parts. Of the whole row,
in units in which 2^d is a probability's share and relative to each member's largest logit,

    entropy = log s - a / s                      log softmax normaliser of z_m: log s_m
    KL(p || pi_m) = log s_m - b_m / s - entropy  log Z = top + log s - sum_m w_m log s_m

Shapes: N rows, M members, V_m vocabulary of member m, P parts.
"""

# Triton's language has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.target_info import is_cuda

from prefmix.mixing.kernels.logits_pass_triton import Members, pass_over_logits
from prefmix.mixing.kernels.outputs import Outputs, empty_outputs
from prefmix.mixing.kernels.running_sums_triton import NO_TOP, capped, merged

_LOG_2 = tl.constexpr(0.6931471805599453)
_QUARTER = tl.constexpr(0.25)
_FOUR_LOGS = tl.constexpr(4 * 0.6931471805599453)
"""A quarter of a difference in units of log 2 is within float32's range if the difference is."""


@triton.jit(do_not_specialize=["present", "num_parts"])
def _mixture_statistics_kernel(
    logits,  # per member a pointer to [N, V_m]
    strides,  # per member its two strides
    weights,  # float32 [N, M]
    tokens,  # int [N]
    sums,  # float32 [N, 3 + 3 M, P], rows of PARTS
    log_partition,  # float32 [N], as the next two
    entropies,
    logprobs,
    divergences,  # float32 [N, M], contiguous, as the next
    policy_logprobs,
    agrees,  # bool [N, M], contiguous
    weights_row,
    weights_column,
    tokens_stride,
    common,
    num_parts,
    present,  # bit m is set if member m ran
    SOFT_CAPS: tl.constexpr,
    UNITS: tl.constexpr,
    PARTS: tl.constexpr,  # a power of two, at least num_parts
):
    row = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, PARTS)
    is_part = p < num_parts
    source = sums + row * (3 + 3 * len(UNITS)) * PARTS + p
    of_weights = ()
    of_members = ()
    of_mixture = (
        tl.load(source, mask=is_part, other=NO_TOP),
        tl.load(source + PARTS, mask=is_part, other=0.0),
        tl.load(source + 2 * PARTS, mask=is_part, other=0.0),
    )
    for m in tl.static_range(len(UNITS)):
        weight = tl.load(weights + row * weights_row + m * weights_column)
        weight = tl.where((present >> m) & 1 != 0, weight, 0.0)
        of_weights = of_weights + (weight,)  # noqa: RUF005 - Triton knows no other way
        own = source + (3 + 3 * m) * PARTS
        top = tl.load(own, mask=is_part, other=NO_TOP)
        s = tl.load(own + PARTS, mask=is_part, other=0.0)
        b = tl.load(own + 2 * PARTS, mask=is_part, other=0.0)
        of_members = of_members + ((top, s, b),)  # noqa: RUF005
    of_members, of_mixture = merged(of_members, of_mixture, of_weights, UNITS, is_cuda())
    x_top, total, a = of_mixture
    for m in tl.static_range(len(UNITS)):
        # A member's NaN is in s_m alone, and is the mixture's if the member has weight.
        total += tl.where(of_weights[m] != 0, 0.0 * of_members[m][1], 0.0)
    entropy = tl.log2(total) - a / total
    normaliser = x_top + tl.log2(total)

    token = tl.load(tokens + row * tokens_stride).to(tl.int64)
    x = 0.0
    log_z = normaliser
    banned = (token < 0) | (token >= common)
    for m in tl.static_range(len(UNITS)):
        has_run = (present >> m) & 1 != 0
        weight = of_weights[m]
        top, s, b = of_members[m]
        place = logits[m] + row * strides[m][0] + token * strides[m][1]
        size = tl.where(has_run, common, 0)
        is_there = (token >= 0) & (token < size)
        z = tl.load(place, mask=is_there, other=-float("inf")).to(tl.float32)
        z = capped(z, SOFT_CAPS[m])
        d = (z * _QUARTER - top * _QUARTER) * UNITS[m]
        x += tl.where(weight != 0, d * weight, 0.0)
        banned = banned | ((weight != 0) & (z == -float("inf")))
        own_normaliser = tl.log2(s)
        log_z -= tl.where(weight != 0, weight * own_normaliser, 0.0)
        divergence = (own_normaliser - b / total - entropy) * _LOG_2
        divergence = tl.where(divergence < 0, 0.0, divergence)  # by rounding; NaN stays
        is_infinite = (b == -float("inf")) & (s == s)
        divergence = tl.where(is_infinite, float("inf"), divergence)
        logprob = (d - own_normaliser * _QUARTER) * _FOUR_LOGS
        target = row * len(UNITS) + m
        tl.store(divergences + target, tl.where(has_run, divergence, float("nan")))
        tl.store(policy_logprobs + target, tl.where(has_run, logprob, float("nan")))
        agrees_here = has_run & (z >= top) & (logprob > -float("inf"))
        tl.store(agrees + target, agrees_here)
    log_z = tl.where(total == 0, -float("inf"), log_z * _LOG_2)
    tl.store(log_partition + row, log_z)
    tl.store(entropies + row, entropy * _LOG_2)
    x = tl.where(banned, -float("inf"), x)
    tl.store(logprobs + row, (x - normaliser * _QUARTER) * _FOUR_LOGS)


def mixture_statistics_triton(
    logits: list[torch.Tensor],
    weights: torch.Tensor,
    tokens: torch.Tensor,
    columns: list[int],
    soft_caps: list[float],
    scales: list[float],
) -> Outputs:
    """Launches the kernels. Takes the arguments of `mixture_statistics_torch`, in any strides."""
    members = Members.of(logits, columns, soft_caps, scales, weights.shape[1])
    return figures_of_tokens(
        members, weights, tokens, pass_over_logits(members, weights, measures=True).sums
    )


def figures_of_tokens(
    members: Members, weights: torch.Tensor, tokens: torch.Tensor, sums: torch.Tensor | None
) -> Outputs:
    """Launches the kernel that makes figures of the sums of a pass.

    Args:
      sums: of `pass_over_logits` with the same members and weights; None without rows.
      tokens: int [N].
    """
    outputs = empty_outputs(weights, weights.shape[1])
    if sums is None:
        return outputs
    num_rows, _, num_parts = sums.shape
    common = min(each.shape[1] for each in members.logits)
    with torch.cuda.device_of(weights):  # Triton launches on the current device
        _mixture_statistics_kernel[(num_rows,)](
            members.logits,
            members.strides,
            weights,
            tokens,
            sums,
            *outputs,
            *weights.stride(),
            tokens.stride(0),
            common,
            num_parts,
            members.present,
            SOFT_CAPS=members.soft_caps,
            UNITS=members.units,
            PARTS=sums.stride(1),
        )
    return outputs
