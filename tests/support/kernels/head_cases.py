"""Hidden states and output matrices that break a fused product; for tests/unit and tests/gpu.

Shapes: N rows, M members, V vocabulary, C common vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from support.kernels.cases import SLACK, check_close


class Heads(NamedTuple):
    """Arguments of `mix_lm_head`."""

    hidden: list[torch.Tensor | None]
    heads: list[torch.Tensor]
    weights_NM: torch.Tensor
    scale: list[float] | None = None

    def to(self, device: str) -> Heads:
        """The inputs on another device; views of larger tensors become contiguous there."""
        hidden = [None if each is None else each.to(device) for each in self.hidden]
        heads = [each.to(device) for each in self.heads]
        return self._replace(hidden=hidden, heads=heads, weights_NM=self.weights_NM.to(device))


def make_heads(
    *widths: int, rows: int = 5, vocab: int = 130, dtype: torch.dtype = torch.float32
) -> Heads:
    """Random inputs: logits as large as a model's, weights on the simplex."""
    generator = torch.Generator().manual_seed(rows + vocab + sum(widths))
    hidden = [torch.randn(rows, width, generator=generator).to(dtype) for width in widths]
    heads = [
        torch.randn(vocab, width, generator=generator).div(width**0.5 / 4).to(dtype)
        for width in widths
    ]
    weights_NM = torch.rand(rows, len(widths), generator=generator) + 0.05
    return Heads([*hidden], heads, weights_NM / weights_NM.sum(dim=1, keepdim=True))


def _separate(inputs: Heads, dtype: torch.dtype) -> torch.Tensor:
    """Separate products, for float32 in the inputs' own dtype, then their mixture in `dtype`."""
    common = min(len(head) for head in inputs.heads)
    mixed_NV = torch.zeros(inputs.weights_NM.shape[0], common, dtype=dtype)
    scales = inputs.scale or [1.0] * len(inputs.heads)
    for states, head, weight_N, scale in zip(
        inputs.hidden, inputs.heads, inputs.weights_NM.T, scales, strict=True
    ):
        if states is not None:
            product = dtype if dtype == torch.float64 else states.dtype
            logits = states.to(product) @ head[:common].to(product).T
            weight_N1 = weight_N[:, None].to(dtype)
            mixed_NV += torch.where(weight_N1 != 0, logits.to(dtype) * weight_N1 * scale, 0.0)
    return mixed_NV


def _poisoned() -> Heads:
    inputs = make_heads(48, 64, 40)
    weights_NM = inputs.weights_NM.clone()
    weights_NM[1] = torch.tensor([0.0, 1.0, 0.0])
    weights_NM[:, 2] = 0.0
    inputs.hidden[0][1] = torch.nan
    inputs.hidden[2][:] = torch.inf
    return inputs._replace(weights_NM=weights_NM)


def _strided_rows() -> Heads:
    """Hidden states side by side in one tensor, heads that are parts of larger ones."""
    inputs = make_heads(32, 80)
    joined = torch.cat([*inputs.hidden, torch.full((5, 9), torch.nan)], dim=1)
    padded = [torch.cat([h, torch.full_like(h, torch.nan)], dim=1) for h in inputs.heads]
    hidden = list(joined.split([32, 80, 9], dim=1)[:2])
    return inputs._replace(hidden=hidden, heads=[padded[0][:, :32], padded[1][:, :80]])


def _ragged() -> Heads:
    short, long = make_heads(64, 32), make_heads(64, 32, vocab=150)
    return short._replace(heads=[long.heads[0], short.heads[1]])


HEADS = {
    "one": lambda: make_heads(64),
    "eight": lambda: make_heads(*[16] * 8, rows=2),
    "different widths": lambda: make_heads(64, 100, 32),
    "many rows": lambda: make_heads(64, 32, rows=130),
    "one row": lambda: make_heads(64, 32, rows=1),
    "no rows": lambda: make_heads(64, 32, rows=0),
    "bfloat16": lambda: make_heads(64, 96, dtype=torch.bfloat16),
    "float16": lambda: make_heads(64, 96, dtype=torch.float16),
    "zero weights, the states poisoned": _poisoned,
    "strided rows": _strided_rows,
    "ragged vocabularies": _ragged,
    "negative weights": lambda: make_heads(64, 32)._replace(
        weights_NM=torch.tensor([[1.5, -0.5]] * 5)
    ),
    "scaled": lambda: make_heads(64, 32)._replace(scale=[0.5, 3.0]),
    "no weight at all": lambda: make_heads(64, 32)._replace(weights_NM=torch.zeros(5, 2)),
    "a member that did not run": lambda: make_heads(64, 32)._replace(
        hidden=[None, make_heads(64, 32).hidden[1]], weights_NM=torch.tensor([[0.0, 1.0]] * 5)
    ),
}


def check_heads(inputs: Heads, mixed_NV: torch.Tensor, *, slack: float = SLACK) -> None:
    """Checks against float64; the error of separate products in the same dtype is allowed."""
    assert mixed_NV.dtype == torch.float32
    truth_NC, plain_NC = _separate(inputs, torch.float64), _separate(inputs, torch.float32)
    common = truth_NC.shape[1]
    assert (mixed_NV[:, common:] == -torch.inf).all()
    check_close(mixed_NV[:, :common], truth_NC, plain_NC, slack=slack)
