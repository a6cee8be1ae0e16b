"""Log-linear mixing of logits.

Shapes: N logits rows, M members, V vocabulary of the mixture, V_m vocabulary of member m.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def log_linear_mix(
    logits_M_NV: Sequence[torch.Tensor | None],
    weights_NM: torch.Tensor,
    *,
    vocab_size: int,
    signed: bool = True,
) -> torch.Tensor:
    """Mixes each row's M sets of logits into one.

    mixed[n, v] = sum_m weights[n, m] * logits[m][n, v], accumulated in float32. It differs from
    the mixture's log-probabilities by a constant per row, which sampling ignores. A token that any
    member with non-zero weight bans (-inf), or that lies beyond such a member's vocabulary, is
    banned; a member with zero weight takes no part, whatever its logits hold (-inf, inf, NaN).

    Args:
      logits_M_NV: per member, [N, V_m] in any float dtype, or None where all its weights are zero.
        Members are padded to different lengths: entries past the shortest V_m are ignored.
      weights_NM: float32 [N, M].
      vocab_size: V, the width of the result; entries past the shortest V_m are -inf.
      signed: whether weights may be negative, which takes one more pass over memory.
    Returns: float32 [N, V], natural-log scale, not normalised.
    Raises: ValueError if there is no logits tensor at all.
    Source: Shi et al. 2024, Decoding-Time Language Model Alignment with Multiple Objectives
      (arXiv 2406.18853), reverse-KL case.
    """
    present = [(member, logits) for member, logits in enumerate(logits_M_NV) if logits is not None]
    if not present:
        raise ValueError("no member has logits; at least one must run")
    common = min(vocab_size, *(logits.shape[-1] for _, logits in present))
    shape = (weights_NM.shape[0], vocab_size)
    mixed_NV = torch.empty(shape, dtype=torch.float32, device=weights_NM.device)
    mixed_NV[:, common:] = -torch.inf
    out_NC = mixed_NV[:, :common]
    for index, (member, logits) in enumerate(present):
        weight_N1 = weights_NM[:, member : member + 1]
        logits_NC = logits[:, :common]
        # A float32 weight promotes half-precision logits as they are read: no copy of them.
        term_NC = torch.mul(logits_NC, weight_N1, out=None if index else out_NC)
        if signed:  # a negative weight would turn a ban into +inf
            term_NC.masked_fill_(logits_NC == -torch.inf, -torch.inf)
        if _any_zero(weight_N1):  # 0 * inf is NaN: a member without weight must leave no trace
            term_NC.masked_fill_(weight_N1 == 0, 0.0)
        if index:
            out_NC += term_NC
    return mixed_NV


def _any_zero(weight_N1: torch.Tensor) -> bool:
    # On a GPU looking would stall the stream: assume so.
    return not weight_N1.is_cpu or bool((weight_N1 == 0).any())
