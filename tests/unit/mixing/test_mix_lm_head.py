"""Fused output matrices against float64 truth and against the products one by one."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from kernel_cases import check_close

from mixing.kernels.members import present_members
from mixing.kernels.mix_lm_head import FUSED_ROWS, mix_lm_head

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


class Heads(NamedTuple):
    hidden: list[torch.Tensor | None]
    heads: list[torch.Tensor]
    weights_NM: torch.Tensor
    scale: list[float] | None = None


def make_heads(
    *widths: int, rows: int = 5, vocab: int = 130, dtype: torch.dtype = torch.float32
) -> Heads:
    generator = torch.Generator().manual_seed(rows + vocab + sum(widths))
    hidden = [torch.randn(rows, width, generator=generator).to(dtype) for width in widths]
    heads = [
        torch.randn(vocab, width, generator=generator).div(width**0.5 / 4).to(dtype)
        for width in widths
    ]
    weights_NM = torch.rand(rows, len(widths), generator=generator) + 0.05
    return Heads([*hidden], heads, weights_NM / weights_NM.sum(dim=1, keepdim=True))


def separate(inputs: Heads, dtype: torch.dtype) -> torch.Tensor:
    """The products one by one, in `dtype` or in the inputs' own for float32, then mixed in it."""
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


def interpreted(inputs: Heads, vocab_size: int) -> torch.Tensor:
    from mixing.kernels.mix_lm_head_triton import mix_lm_head_triton

    hidden, columns, _, scales = present_members(
        inputs.hidden, inputs.weights_NM, what="hidden states", scale=inputs.scale
    )
    heads = [inputs.heads[column] for column in columns]
    return mix_lm_head_triton(hidden, heads, inputs.weights_NM, columns, vocab_size, scales)


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


INPUTS = {
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


def check(inputs: Heads, mixed_NV: torch.Tensor) -> None:
    assert mixed_NV.dtype == torch.float32
    truth_NC, plain_NC = separate(inputs, torch.float64), separate(inputs, torch.float32)
    common = truth_NC.shape[1]
    assert (mixed_NV[:, common:] == -torch.inf).all()
    check_close(mixed_NV[:, :common], truth_NC, plain_NC)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("vocab_size", [None, 140])
def test_twin_matches_float64_truth(name: str, vocab_size: int | None) -> None:
    inputs = INPUTS[name]()
    *data, scale = inputs
    check(inputs, mix_lm_head(*data, scale=scale, vocab_size=vocab_size))


# The interpreter multiplies bfloat16 matrices as if their bits were integers.
@pytest.mark.parametrize("name", [name for name in INPUTS if name != "bfloat16"])
@pytest.mark.usefixtures("interpreter")
def test_kernel_matches_float64_truth(name: str) -> None:
    inputs = INPUTS[name]()
    check(inputs, interpreted(inputs, vocab_size=140))


@pytest.mark.usefixtures("interpreter")
def test_one_hot_weights_give_that_policy_exactly() -> None:
    """In half precision the weighted states are rounded: a weight of 1 must not be."""
    inputs = make_heads(64, 64, dtype=torch.float16)
    alone = Heads(inputs.hidden[1:], inputs.heads[1:], torch.ones(5, 1))
    one_hot = inputs._replace(weights_NM=torch.tensor([[0.0, 1.0]] * 5))
    torch.testing.assert_close(interpreted(one_hot, 130), interpreted(alone, 130), atol=0, rtol=0)


def test_is_one_operator_to_the_compiler() -> None:
    inputs = make_heads(64, 32)

    def logprobs(weights_NM: torch.Tensor) -> torch.Tensor:
        return mix_lm_head(inputs.hidden, inputs.heads, weights_NM).log_softmax(dim=-1)

    compiled = torch.compile(logprobs, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs.weights_NM), logprobs(inputs.weights_NM))


def test_no_device_is_listed_without_a_record() -> None:
    """Whoever measures one adds it here together with the record under tests/bench/results."""
    assert not FUSED_ROWS


def test_refuses_what_does_not_fit() -> None:
    hidden, heads, weights_NM, _ = make_heads(64, 32)
    with pytest.raises(ValueError, match="1 heads for 2 members"):
        mix_lm_head(hidden, heads[:1], weights_NM)
    with pytest.raises(ValueError, match=r"head of member 1 must be \[V, 32\]"):
        mix_lm_head(hidden, [heads[0], heads[0]], weights_NM)
    with pytest.raises(ValueError, match=r"head of member 0 is torch\.float16 on cpu"):
        mix_lm_head(hidden, [heads[0].half(), heads[1]], weights_NM)
    with pytest.raises(ValueError, match="head of member 1 must have contiguous rows"):
        mix_lm_head(hidden, [heads[0], heads[1].T.contiguous().T], weights_NM)
    with pytest.raises(ValueError, match="fused=True needs tensors on a CUDA device"):
        mix_lm_head(hidden, heads, weights_NM, fused=True)
    with pytest.raises(ValueError, match="no member has hidden states"):
        mix_lm_head([None, None], heads, weights_NM)
