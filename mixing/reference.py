"""The definition of a mixture, written as plainly as possible, in float64.

Tests compare the engine with it, and prefmix.weights uses it for small exact problems.
Shapes: N rows, M members, V vocabulary.
"""

from __future__ import annotations

import torch


def mixture_logprobs_reference(logits_NMV: torch.Tensor, weights_NM: torch.Tensor) -> torch.Tensor:
    """Computes log softmax_v(sum_m w_m z_m[v]), row by row.

    Args:
      logits_NMV: raw logits, any float dtype; -inf marks a banned token.
      weights_NM: one weight vector a row; a zero weight ignores its member altogether.
    Returns: float64 [N, V] natural-log probabilities.
    """
    rows = []
    for logits_MV, weights_M in zip(logits_NMV.double(), weights_NM.double(), strict=True):
        mixed_V = torch.zeros(logits_MV.shape[-1], dtype=torch.float64)
        banned_V = torch.zeros(logits_MV.shape[-1], dtype=torch.bool)
        for logits_V, weight in zip(logits_MV, weights_M, strict=True):
            if weight != 0:
                banned_V |= logits_V == -torch.inf
                mixed_V = mixed_V + weight * logits_V
        rows.append(mixed_V.masked_fill(banned_V, -torch.inf).log_softmax(dim=-1))
    return torch.stack(rows)
