"""A comparison of two readings of the same checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch


@torch.no_grad()
def differences(
    names: Sequence[str],
    first: Sequence[torch.nn.Module],
    anew: Sequence[torch.nn.Module],
    tokens: Sequence[int],
) -> str:
    """One line with the largest difference of each tensor, and of each model's logits after T
    tokens, for the models that differ."""
    ids = torch.tensor([list(tokens)])
    found = []
    for name, one, two in zip(names, first, anew, strict=True):
        parts = [
            f"{key} {(tensor - other).abs().max().item():.3g}"
            for (key, tensor), other in zip(
                _tensors(one).items(), _tensors(two).values(), strict=True
            )
            if not torch.equal(tensor, other)
        ]
        logits = one(ids).logits, two(ids).logits
        if not torch.equal(*logits):
            parts.append(f"logits {(logits[0] - logits[1]).abs().max().item():.3g}")
        if parts:
            found.append(f"{name}: {', '.join(parts)}")
    return "; ".join(found) or "no tensor, and no logits"


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by name, also those that are not saved."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
