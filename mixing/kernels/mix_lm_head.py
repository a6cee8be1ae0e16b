"""Mixed logits from hidden states and LM heads in one product: public function and torch fallback.

sum_m w_m (h_m W_m^T) = [w_1 h_1 ... w_M h_M] [W_1 ... W_M]^T: the mixture of linear heads is one
matrix product over the concatenated hidden widths. The Triton kernel is in mix_lm_head_triton.py.
Shapes: N rows, M members, V vocabulary of the mixture, V_m and D_m vocabulary and hidden width of
member m, C common vocabulary: the shortest of V and all V_m.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prefmix.mixing.kernels.log_linear_mix import log_linear_mix
from prefmix.mixing.kernels.members import present_members
from prefmix.mixing.kernels.operators import operator

FUSED_ROWS: dict[tuple[int, int], range] = {}
"""Numbers of rows N for which the Triton kernel is faster than the torch fallback, by CUDA compute
capability, measured by `python -m prefmix.bench.kernels --kernel mix_lm_head`.

Empty: no device has been measured yet. A device that is not listed takes the torch fallback, whose
products are the vendor's library. A CPU always takes the fallback.
"""


def mix_lm_head(
    hidden: Sequence[torch.Tensor | None],
    heads: Sequence[torch.Tensor],
    weights_NM: torch.Tensor,
    *,
    vocab_size: int | None = None,
    scale: Sequence[float] | None = None,
    fused: bool | None = None,
) -> torch.Tensor:
    """Mixes M members' logits straight from their hidden states.

    mixed[n, v] = sum_m weights[n, m] * scale_m * (heads_m[v] . hidden_m[n]), accumulated in
    float32. Exact only where nothing follows the heads but a factor: a soft-capped member needs
    its own logits and `log_linear_mix`. A member with zero weight takes no part, whatever its
    hidden state holds; heads must be finite.

    The Triton kernel keeps no member's logits in memory, applies weights to hidden states as it
    loads them (rounding them to the model's dtype; a weight of 1 is exact) and skips a member's
    head where all rows of a tile give it zero weight. The torch fallback uses library products; in
    half precision it holds M members' logits for a moment. Both are the operator
    `prefmix::mix_lm_head`, which works under torch.compile and in CUDA graphs and never waits for
    the GPU.

    Args:
      hidden: per member [N, D_m], or None where all its weights are zero.
      heads: per member [V_m, D_m], in the dtype of its hidden states. Both may have any row stride;
        elements of a row must lie next to each other. Entries past C are ignored.
      weights_NM: float32 [N, M].
      vocab_size: V, the width of the result; entries past C are -inf. Default: C.
      scale: per member a factor on its logits.
      fused: True takes the Triton kernel, False the torch fallback, None decides by `FUSED_ROWS`.
    Returns: float32 [N, V], natural-log scale, not normalised.
    Raises: ValueError if shapes, dtypes or devices disagree, a row is not contiguous, no member
      ran, or the Triton kernel is asked for without a CUDA device.
    """
    present = present_members(hidden, weights_NM, what="hidden states", scale=scale)
    if len(heads) != len(hidden):
        raise ValueError(f"there are {len(heads)} heads for {len(hidden)} members' hidden states")
    own_heads = [heads[column] for column in present.columns]
    for column, states, head in zip(present.columns, present.tensors, own_heads, strict=True):
        _check_head(column, states, head)
    if vocab_size is None:
        vocab_size = min(head.shape[0] for head in own_heads)
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1; got {vocab_size}")
    if fused and weights_NM.device.type != "cuda":
        raise ValueError(
            f"fused=True needs tensors on a CUDA device; they are on {weights_NM.device}"
        )
    return _operator(
        present.tensors, own_heads, weights_NM, present.columns, vocab_size, present.scales, fused
    )


def _check_head(column: int, states: torch.Tensor, head: torch.Tensor) -> None:
    if head.dim() != 2 or head.shape[1] != states.shape[1]:
        raise ValueError(
            f"head of member {column} must be [V, {states.shape[1]}] as its hidden states are that"
            f" wide; got {list(head.shape)}"
        )
    if head.dtype != states.dtype or head.device != states.device:
        raise ValueError(
            f"head of member {column} is {head.dtype} on {head.device}, its hidden states"
            f" {states.dtype} on {states.device}"
        )
    for name, tensor in (("head", head), ("hidden states", states)):
        if tensor.stride(1) != 1 and tensor.shape[1] > 1:
            raise ValueError(
                f"{name} of member {column} must have contiguous rows; strides are"
                f" {tensor.stride()}; call .contiguous() once, outside the decoding loop"
            )


def mix_lm_head_torch(
    hidden: list[torch.Tensor],
    heads: list[torch.Tensor],
    weights: torch.Tensor,
    columns: list[int],
    vocab_size: int,
    scales: list[float],
    fused: bool | None,
) -> torch.Tensor:
    """The torch fallback, for any device. Takes checked tensors of the members that ran.

    `fused` has no effect: it is part of the operator, whose schema this signature is."""
    common = min(vocab_size, *(head.shape[0] for head in heads))
    heads = [head[:common] for head in heads]
    if weights.is_cpu:  # reading weights would stall a GPU
        used = [bool(weights[:, column].any()) for column in columns]
    else:
        used = [True] * len(columns)
    members = [
        (states, head, column, scale)
        for states, head, column, scale, use in zip(
            hidden, heads, columns, scales, used, strict=True
        )
        if use
    ]
    is_float32 = all(states.dtype == torch.float32 for states in hidden)
    if members and not is_float32:
        # Each sum of half-precision products would be rounded: add them up in float32 instead.
        logits: list[torch.Tensor | None] = [None] * weights.shape[1]
        factors = [1.0] * weights.shape[1]
        for states, head, column, scale in members:
            logits[column], factors[column] = states @ head.T, scale
        return log_linear_mix(logits, weights, vocab_size=vocab_size, scale=factors)
    mixed_NV = weights.new_empty((weights.shape[0], vocab_size))
    mixed_NV[:, common:] = -torch.inf
    mixed_NC = mixed_NV[:, :common]
    if not members:
        mixed_NC.zero_()
    for place, (states, head, column, scale) in enumerate(members):
        weight = weights[:, column : column + 1]
        weighted = (states * (weight * scale)).masked_fill_(weight == 0, 0.0)
        # A factor of 0 lets the product overwrite what memory held, which may be NaN.
        mixed_NC.addmm_(weighted, head.T, beta=float(place > 0))
    return mixed_NV


def takes_fused(weights_NM: torch.Tensor) -> bool:
    """True if one kernel is faster than the products of all members for so many rows."""
    if weights_NM.device.type != "cuda":
        return False
    capability = torch.cuda.get_device_capability(weights_NM.device)
    return weights_NM.shape[0] in FUSED_ROWS.get(capability, ())


def _on_cuda(
    hidden: list[torch.Tensor],
    heads: list[torch.Tensor],
    weights: torch.Tensor,
    columns: list[int],
    vocab_size: int,
    scales: list[float],
    fused: bool | None,
) -> torch.Tensor:
    if not (takes_fused(weights) if fused is None else fused):
        return mix_lm_head_torch(hidden, heads, weights, columns, vocab_size, scales, fused)
    # Imported here, so that the package needs no Triton where there is no GPU.
    from prefmix.mixing.kernels.mix_lm_head_triton import mix_lm_head_triton

    return mix_lm_head_triton(hidden, heads, weights, columns, vocab_size, scales)


def _empty(
    hidden: Any, heads: Any, weights: torch.Tensor, columns: Any, vocab_size: int, *_: Any
) -> torch.Tensor:
    return weights.new_empty((weights.shape[0], vocab_size))


_operator = operator("mix_lm_head", mix_lm_head_torch, cuda=_on_cuda, fake=_empty)
