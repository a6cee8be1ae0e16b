"""Entropy, divergences and log-probabilities of each row's mixture: public function and fallback.

The Triton kernel is in mixture_statistics_triton.py.

Shapes: N logits rows, M members, V_m vocabulary of member m, C common vocabulary (the shortest).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from prefmix.mixing.kernels.log_linear_mix import soft_capped
from prefmix.mixing.kernels.members import present_members
from prefmix.mixing.kernels.operators import operator
from prefmix.mixing.kernels.outputs import Outputs, empty_outputs

_BLOCK_ELEMENTS = 1 << 17
"""Number of a member's logits in a block on a CPU: half a MiB, which stays in the cache."""


class MixtureStatistics(NamedTuple):
    """Per row, in nats. p is the mixture and pi_m = softmax(z_m) member m, both over C tokens."""

    log_partition_N: torch.Tensor
    """float32 log sum_v prod_m pi_m(v)^w_m: the local normaliser log Z_t of the served mixture.

    Its sum over a response's tokens is the log importance weight from the token-level mixture to
    the sequence-level product. Not above 0 on the simplex, 0 where the weighted policies agree."""
    entropy_N: torch.Tensor
    """float32 -sum_v p(v) log p(v)."""
    logprob_N: torch.Tensor
    """float32 log p(token)."""
    kl_NM: torch.Tensor
    """float32 KL(p || pi_m); +inf exactly where pi_m bans a token that p does not."""
    policy_logprobs_NM: torch.Tensor
    """float32 log pi_m(token)."""
    agrees_NM: torch.Tensor
    """bool: True if the token is most likely under pi_m; all tokens of equal logits count."""


def mixture_statistics(
    logits: torch.Tensor | Sequence[torch.Tensor | None],
    weights_NM: torch.Tensor,
    tokens_N: torch.Tensor,
    *,
    soft_cap: Sequence[float | None] | None = None,
    scale: Sequence[float] | None = None,
) -> MixtureStatistics:
    """Measures each row's mixture and one token under it, reading every logit once.

    CUDA tensors go to the Triton kernel, which writes nothing of the vocabulary's size. Others go
    to the torch fallback, which on a CPU works block by block in (M + 2) float32 tensors of C or
    131,072 elements, whichever is more, and in further ones of a block's size if tokens are banned
    or logits capped. Both are the operator `prefmix::mixture_statistics`, which works under
    torch.compile and in CUDA graphs and never waits for the GPU.

    Bans (logits of -inf) are exact: p log p is 0 where p is 0. A member with zero weight takes no
    part in p, whatever its logits hold, but its own columns describe it (NaN if its logits are
    NaN). The columns of a member that did not run are NaN and False. A token outside 0..C-1 is
    banned. If all tokens are banned there is no mixture: log_partition is -inf, entropy and
    log-probability are NaN.

    Args:
      logits: [N, M, V], or per member [N, V_m] or None. Any float dtypes and strides. pi_m and p
        are over the first C tokens; entries past C are ignored.
      weights_NM: float32 [N, M].
      tokens_N: int32 or int64 [N].
      soft_cap, scale: per member, as in `log_linear_mix`.
    Raises: ValueError if shapes, dtypes or devices disagree or there is no logits tensor at all.
    Source: log_partition_N is the normaliser of Wang et al. 2025, Mixing Preference Optimization
      (arXiv 2502.18699), taken a token at a time.
    """
    present = present_members(logits, weights_NM, what="logits", soft_cap=soft_cap, scale=scale)
    if tokens_N.dtype not in (torch.int32, torch.int64) or tokens_N.shape != weights_NM.shape[:1]:
        raise ValueError(
            f"tokens must be int32 or int64 [{weights_NM.shape[0]}], one a row of weights; got"
            f" {tokens_N.dtype} {list(tokens_N.shape)}"
        )
    if tokens_N.device != weights_NM.device:
        raise ValueError(f"tokens are on {tokens_N.device}, weights on {weights_NM.device}")
    tensors, columns, soft_caps, scales = present
    return MixtureStatistics(*_operator(tensors, weights_NM, tokens_N, columns, soft_caps, scales))


def mixture_statistics_torch(
    logits: list[torch.Tensor],
    weights: torch.Tensor,
    tokens: torch.Tensor,
    columns: list[int],
    soft_caps: list[float],
    scales: list[float],
) -> Outputs:
    """The torch fallback, for any device. Takes what `present_members` returns, and tokens."""
    outputs = empty_outputs(weights, len(columns))
    num_rows = weights.shape[0]
    common = min(tensor.shape[1] for tensor in logits)
    rows = max(1, _BLOCK_ELEMENTS // common) if weights.is_cpu else max(1, num_rows)
    # Allocated once for all blocks: fresh memory costs more than the computation in it.
    scratch = weights.new_empty((len(logits) + 2, min(rows, num_rows), common))
    present_weights = torch.stack([weights[:, column] for column in columns], dim=1)
    for start in range(0, num_rows, rows):
        block = slice(start, start + rows)
        _measure_block(
            [output[block] for output in outputs],
            [tensor[block, :common] for tensor in logits],
            present_weights[block],
            tokens[block],
            columns,
            list(zip(soft_caps, scales, strict=True)),
            scratch[:, : min(rows, num_rows - start)],
        )
    return outputs


def _measure_block(
    outputs: list[torch.Tensor],
    logits: list[torch.Tensor],
    weights: torch.Tensor,
    tokens: torch.Tensor,
    columns: list[int],
    caps_and_scales: list[tuple[float, float]],
    scratch: torch.Tensor,
) -> None:
    """Writes the statistics of P members' logits [n, C], weights [n, P] and tokens [n].

    The formulas are those of mixture_statistics_triton. scratch: float32 [P + 2, n, C].
    """
    log_partition, entropy, logprob, kl, policy_logprobs, agrees = outputs
    sums, bans = _mix_block(logits, weights, caps_and_scales, scratch)
    *policies, mixed, p = scratch.unbind()
    top = mixed.amax(dim=-1)
    nothing_left = top == -torch.inf
    mixed.sub_(top.masked_fill(nothing_left, 0.0)[:, None])
    p_sum, exp_sum = _softmax(mixed, out=p)
    normaliser, normalisers = exp_sum.log_(), torch.stack(sums, dim=1).log_()
    of_policies = (normalisers * weights).masked_fill_(weights == 0, 0.0).sum(dim=1)
    torch.where(nothing_left, top, top + normaliser - of_policies, out=log_partition)

    impossible = p == 0 if bans else None  # 0 * -inf counts as 0
    means = [
        torch.linalg.vecdot(p, z if impossible is None else z.masked_fill(impossible, 0.0))
        for z in (*policies, mixed)
    ]
    mean = torch.stack(means, dim=1).div_(p_sum[:, None])
    torch.sub(normaliser, mean[:, -1], out=entropy)
    divergences = (normalisers - mean[:, :-1]).sub_(entropy[:, None]).clamp_(min=0.0)
    if bans:
        possible = mixed > -torch.inf
        infinite = torch.stack([(ban & possible).any(dim=-1) for ban in bans], dim=1)
        divergences.masked_fill_(infinite, torch.inf)

    common = scratch.shape[-1]
    outside = (tokens < 0) | (tokens >= common)
    index = tokens.long().clamp(0, common - 1)[:, None]
    z = scratch[:-1].gather(2, index.expand(len(logits) + 1, -1, 1))[:, :, 0].T
    z = z.masked_fill(outside[:, None], -torch.inf)
    torch.sub(z[:, -1], normaliser, out=logprob)
    found = divergences, z[:, :-1] - normalisers, z[:, :-1] == 0
    for output, values in zip((kl, policy_logprobs, agrees), found, strict=True):
        for column, value in zip(columns, values.unbind(dim=1), strict=True):
            output[:, column] = value


def _mix_block(
    logits: list[torch.Tensor],
    weights: torch.Tensor,
    caps_and_scales: list[tuple[float, float]],
    scratch: torch.Tensor,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Fills scratch, except its last part, with the policies' logits and their mixture.

    Returns: per policy the sum of e^z [n]; per policy a mask of banned tokens [n, C], or nothing
      if no policy bans a token.
    """
    *policies, mixed, work = scratch.unbind()
    mixed.zero_()
    any_bans = False
    sums, own_weights = [], weights[:, :, None].unbind(dim=1)
    for raw, weight, policy, (cap, scale) in zip(
        logits, own_weights, policies, caps_and_scales, strict=True
    ):
        _write_relative(raw, cap, scale, out=policy)
        sums.append(_softmax(policy, out=work)[1])
        # Looking would stall a GPU: assume that there are bans and zero weights.
        any_bans |= not raw.is_cpu or not bool(policy.amin() > -torch.inf)
        if raw.is_cpu and weight.all():
            mixed.addcmul_(policy, weight)
        else:
            mixed.add_(torch.mul(policy, weight, out=work).masked_fill_(weight == 0, 0.0))
    bans = [raw == -torch.inf for raw in logits] if any_bans else []
    for ban, weight in zip(bans, own_weights, strict=False):
        mixed.masked_fill_(ban & (weight != 0), -torch.inf)
    return sums, bans


def _write_relative(raw: torch.Tensor, cap: float, scale: float, *, out: torch.Tensor) -> None:
    """Writes logits [n, C], capped and scaled, relative to each row's largest."""
    out.copy_(raw)
    if cap:
        out.copy_(soft_capped(out, cap)).masked_fill_(raw == -torch.inf, -torch.inf)
    if scale != 1:
        out.mul_(scale)
    out.sub_(out.amax(dim=-1, keepdim=True))


def _softmax(z: torch.Tensor, *, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes p, proportional to e^z, for rows z [n, C] with maximum 0.

    On a CPU torch divides by a sum that it takes number by number: at C = 262,144, p adds up to 1
    only within 3e-5. The largest p is 1 over that sum, whatever its error.
    Returns: the sum of p [n] and the sum of e^z [n], both exact up to rounding.
    """
    p_sum = torch.softmax(z, dim=-1, out=out).sum(dim=-1)
    return p_sum, p_sum / out.amax(dim=-1)


def _on_cuda(*arguments: Any) -> Outputs:
    # Imported here, so that the package needs no Triton where there is no GPU.
    from prefmix.mixing.kernels.mixture_statistics_triton import mixture_statistics_triton

    return mixture_statistics_triton(*arguments)


def _empty(logits: Any, weights: torch.Tensor, tokens: Any, columns: list[int], *_: Any) -> Outputs:
    return empty_outputs(weights, len(columns))


_operator = operator("mixture_statistics", mixture_statistics_torch, cuda=_on_cuda, fake=_empty)
