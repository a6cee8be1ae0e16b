"""Fused output matrices against float64 truth and against the products one by one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from prefmix.mixing.kernels.members import present_members
from prefmix.mixing.kernels.mix_lm_head import FUSED_ROWS, mix_lm_head
from support.kernels.head_cases import HEADS, Heads, check_heads, make_heads

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


def interpreted(inputs: Heads, vocab_size: int) -> torch.Tensor:
    from prefmix.mixing.kernels.mix_lm_head_triton import mix_lm_head_triton

    hidden, columns, _, scales = present_members(
        inputs.hidden, inputs.weights_NM, what="hidden states", scale=inputs.scale
    )
    heads = [inputs.heads[column] for column in columns]
    return mix_lm_head_triton(hidden, heads, inputs.weights_NM, columns, vocab_size, scales)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("vocab_size", [None, 140])
def test_fallback_matches_float64_truth(name: str, vocab_size: int | None) -> None:
    inputs = HEADS[name]()
    *data, scale = inputs
    check_heads(inputs, mix_lm_head(*data, scale=scale, vocab_size=vocab_size))


# The interpreter multiplies bfloat16 matrices as if their bits were integers.
@pytest.mark.parametrize("name", [name for name in HEADS if name != "bfloat16"])
@pytest.mark.usefixtures("interpreter")
def test_kernel_matches_float64_truth(name: str) -> None:
    inputs = HEADS[name]()
    check_heads(inputs, interpreted(inputs, vocab_size=140))


@pytest.mark.usefixtures("interpreter")
def test_one_hot_weights_give_that_policy_exactly() -> None:
    """Half precision rounds the weighted states, but a weight of 1 must stay exact."""
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


RESULTS = Path(__file__).resolve().parents[3] / "bench" / "results"


def _without_record(capabilities: Iterable[tuple[int, int]]) -> list[str]:
    records = [path.read_text(encoding="utf-8") for path in RESULTS.glob("kernels_*.md")]
    names = [f"compute capability {major}.{minor}" for major, minor in capabilities]
    return [name for name in names if not any(f"{name}\n" in record for record in records)]


def test_no_device_is_listed_without_a_record() -> None:
    """A line of tests/bench/results/kernels_*.md ends in `compute capability 9.0`, say."""
    assert not _without_record(FUSED_ROWS)
    assert _without_record([(99, 0)]) == ["compute capability 99.0"]


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
    with pytest.raises(ValueError, match=r"scale must be positive.*got \[1\.0, 0\.0\]"):
        mix_lm_head(hidden, heads, weights_NM, scale=[1.0, 0.0])
    with pytest.raises(ValueError, match="no member has hidden states"):
        mix_lm_head([None, None], heads, weights_NM)
