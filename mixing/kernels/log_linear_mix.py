"""Log-linear mixing of logits: the public function and its torch fallback.

The Triton kernel is in logits_pass_triton.py.

Shapes: N logits rows, M members, V vocabulary of the mixture, V_m vocabulary of member m,
C common vocabulary: the shortest of V and all V_m.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prefmix.mixing.kernels.members import present_members
from prefmix.mixing.kernels.operators import operator
from prefmix.mixing.kernels.outputs import aligned_rows

_BLOCK_ELEMENTS = 1 << 17
"""Number of float32 that a CPU mixes at a time: half a MiB, which stays in the cache."""


def log_linear_mix(
    logits: torch.Tensor | Sequence[torch.Tensor | None],
    weights_NM: torch.Tensor,
    *,
    vocab_size: int | None = None,
    soft_cap: Sequence[float | None] | None = None,
    scale: Sequence[float] | None = None,
    signed: bool = True,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Mixes each row's M sets of logits into one.

    mixed[n, v] = sum_m weights[n, m] * z_m[n, v], accumulated in float32, where
    z_m = scale_m * soft_cap_m * tanh(logits_m / soft_cap_m), or scale_m * logits_m without a cap.
    It differs from the mixture's log-probabilities by a constant per row, which sampling ignores.
    A token that any member with non-zero weight bans (logits of -inf) is banned; a member with zero
    weight takes no part, whatever its logits hold (-inf, inf, NaN), and a GPU does not read them.

    CUDA tensors go to the Triton kernel, others to the torch fallback. Both are the operator
    `prefmix::log_linear_mix`, which works under torch.compile and in CUDA graphs and never waits
    for the GPU.

    Args:
      logits: [N, M, V], or per member [N, V_m] or None where all its weights are zero. Any float
        dtypes and strides. Members are padded to different lengths: entries past C are ignored.
      weights_NM: float32 [N, M].
      vocab_size: V, the width of the result; entries past C are -inf. Default: C.
      soft_cap: per member the bound of a tanh, or None; Gemma's `final_logit_softcapping`.
      scale: per member a factor, applied after the cap as in vLLM.
      signed: False promises that no weight is negative, which saves the torch fallback a check.
      dtype: of the result, which is rounded once.
    Returns: [N, V], natural-log scale, not normalised. On a GPU rows begin at multiples of 16
      elements, so that it may have a larger stride than V.
    Raises: ValueError if shapes, dtypes or devices disagree or there is no logits tensor at all.
    Source: Shi et al. 2024, Decoding-Time Language Model Alignment with Multiple Objectives
      (arXiv 2406.18853), reverse-KL case.
    """
    present = present_members(logits, weights_NM, what="logits", soft_cap=soft_cap, scale=scale)
    if vocab_size is None:
        vocab_size = min(tensor.shape[1] for tensor in present.tensors)
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1; got {vocab_size}")
    tensors, columns, soft_caps, scales = present
    return _operator(tensors, weights_NM, columns, vocab_size, soft_caps, scales, signed, dtype)


def log_linear_mix_torch(
    logits: list[torch.Tensor],
    weights: torch.Tensor,
    columns: list[int],
    vocab_size: int,
    soft_caps: list[float],
    scales: list[float],
    signed: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The torch fallback, for any device. Takes what `present_members` returns."""
    num_rows = weights.shape[0]
    common = min(vocab_size, *(tensor.shape[1] for tensor in logits))
    mixed_NV = torch.empty((num_rows, vocab_size), dtype=torch.float32, device=weights.device)
    mixed_NV[:, common:] = -torch.inf
    rows = max(1, _BLOCK_ELEMENTS // common) if weights.is_cpu else max(1, num_rows)
    weights_by_row = weights.tolist() if weights.is_cpu else None
    for start in range(0, num_rows, rows):
        block = slice(start, start + rows)
        empty, out = True, mixed_NV[block, :common]
        for tensor, column, cap, scale in zip(logits, columns, soft_caps, scales, strict=True):
            # Reading weights would stall a GPU: assume that there are negative ones and zeros.
            values = (
                {row[column] for row in weights_by_row[block]} if weights_by_row else {-1.0, 0.0}
            )
            if not any(values):
                continue
            raw, weight = tensor[block, :common], weights[block, column : column + 1]
            factor = weight if scale == 1 else weight * scale
            # A float32 factor promotes half-precision logits as they are read: no copy of them.
            term = torch.mul(soft_capped(raw, cap), factor, out=out if empty else None)
            # A negative weight would turn a ban into +inf, a soft-cap into a finite value.
            if cap or (signed and min(values) < 0):
                term.masked_fill_(raw == -torch.inf, -torch.inf)
            if 0.0 in values:  # 0 * inf is NaN: a member without weight must leave no trace
                term.masked_fill_(weight == 0, 0.0)
            if not empty:
                out += term
            empty = False
        if empty:
            out.zero_()
    return mixed_NV if dtype == torch.float32 else mixed_NV.to(dtype)


def soft_capped(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """cap * tanh(logits / cap) in float32; the logits themselves if the cap is 0."""
    return logits.float().div(cap).tanh_().mul_(cap) if cap else logits


def _on_cuda(
    logits: list[torch.Tensor],
    weights: torch.Tensor,
    columns: list[int],
    vocab_size: int,
    soft_caps: list[float],
    scales: list[float],
    _signed: bool,  # the kernel takes weights of any sign
    dtype: torch.dtype,
) -> torch.Tensor:
    # Imported here, so that the package needs no Triton where there is no GPU.
    from prefmix.mixing.kernels.logits_pass_triton import log_linear_mix_triton

    return log_linear_mix_triton(logits, weights, columns, vocab_size, soft_caps, scales, dtype)


def _empty(logits: Any, weights: torch.Tensor, columns: Any, vocab_size: int, *others: Any) -> Any:
    *_, dtype = others
    num_rows = weights.shape[0]
    if weights.is_cpu:
        return weights.new_empty((num_rows, vocab_size), dtype=dtype)
    return aligned_rows(num_rows, vocab_size, dtype=dtype, device=weights.device)


_operator = operator("log_linear_mix", log_linear_mix_torch, cuda=_on_cuda, fake=_empty)
