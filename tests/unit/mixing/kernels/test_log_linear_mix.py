"""Error is judged against float64 truth and must not exceed plain torch in the same dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prefmix.mixing.kernels.log_linear_mix import log_linear_mix
from prefmix.mixing.kernels.members import present_members
from prefmix.mixing.reference import mixture_logprobs_reference
from support.kernels.cases import CASES, Case, check_mixed, make_case

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


def logits_and_weights(
    *, rows: int, members: int, vocab: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_NMV = torch.randn(rows, members, vocab, generator=generator).mul_(4).to(dtype)
    weights_NM = torch.rand(rows, members, generator=generator)
    return logits_NMV, weights_NM / weights_NM.sum(dim=1, keepdim=True)


def mix(logits_NMV: torch.Tensor, weights_NM: torch.Tensor) -> torch.Tensor:
    members = list(logits_NMV.unbind(dim=1))
    signed = bool((weights_NM < 0).any())
    return log_linear_mix(members, weights_NM, vocab_size=logits_NMV.shape[-1], signed=signed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [507, 1000])
@pytest.mark.parametrize("members", [1, 2, 3, 8])
def test_mix_matches_float64_truth(members: int, vocab: int, dtype: torch.dtype) -> None:
    logits_NMV, weights_NM = logits_and_weights(rows=5, members=members, vocab=vocab, dtype=dtype)
    truth_NV = mixture_logprobs_reference(logits_NMV, weights_NM)
    plain_NV = (logits_NMV.float() * weights_NM[:, :, None]).sum(dim=1).log_softmax(dim=-1)
    mixed = mix(logits_NMV, weights_NM)
    assert mixed.dtype == torch.float32
    error = (mixed.double().log_softmax(dim=-1) - truth_NV).abs().max()
    assert error <= (plain_NV - truth_NV).abs().max() + 1e-5


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_zero_weight_ignores_a_member_whatever_it_holds(poison: float) -> None:
    logits_NMV, weights_NM = logits_and_weights(rows=4, members=3, vocab=64)
    weights_NM[1] = torch.tensor([0.5, 0.0, 0.5])
    healthy = mix(logits_NMV, weights_NM)[1]
    logits_NMV[1, 1] = poison
    torch.testing.assert_close(mix(logits_NMV, weights_NM)[1], healthy)
    assert mix(logits_NMV, weights_NM)[[0, 2, 3]].isfinite().all()


def test_a_ban_by_any_weighted_member_bans_even_with_negative_weight() -> None:
    logits_NMV, _ = logits_and_weights(rows=2, members=2, vocab=16)
    logits_NMV[:, 1, 3] = -torch.inf
    weights_NM = torch.tensor([[1.5, -0.5], [1.0, 0.0]])
    mixed_NV = mix(logits_NMV, weights_NM)
    assert mixed_NV[0, 3] == -torch.inf
    assert mixed_NV[1, 3].isfinite()
    truth_NV = mixture_logprobs_reference(logits_NMV, weights_NM)
    torch.testing.assert_close(mixed_NV.double().log_softmax(dim=-1), truth_NV, atol=1e-5, rtol=0)


def test_padded_vocabularies_are_cut_to_the_shortest_and_the_rest_is_banned() -> None:
    short, long = torch.randn(3, 10), torch.randn(3, 14)
    weights_NM = torch.full((3, 2), 0.5)
    mixed_NV = log_linear_mix([long, short], weights_NM, vocab_size=12)
    assert mixed_NV.shape == (3, 12)
    assert (mixed_NV[:, 10:] == -torch.inf).all()
    torch.testing.assert_close(mixed_NV[:, :10], (short + long[:, :10]) / 2)


def test_members_that_did_not_run_take_no_part() -> None:
    logits = torch.randn(2, 8)
    weights_NM = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    torch.testing.assert_close(log_linear_mix([None, logits], weights_NM, vocab_size=8), logits)
    with pytest.raises(ValueError, match="no member has logits"):
        log_linear_mix([None, None], weights_NM, vocab_size=8)


def test_no_rows_is_no_rows() -> None:
    assert log_linear_mix([torch.empty(0, 8)], torch.empty(0, 1), vocab_size=8).shape == (0, 8)


def test_permuting_members_and_weights_together_changes_nothing() -> None:
    logits_NMV, weights_NM = logits_and_weights(rows=6, members=4, vocab=100)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(
        mix(logits_NMV[:, order], weights_NM[:, order]), mix(logits_NMV, weights_NM)
    )


def interpreted(case: Case, vocab_size: int | None = None) -> torch.Tensor:
    from prefmix.mixing.kernels.logits_pass_triton import log_linear_mix_triton

    present = present_members(case.logits, case.weights_NM, what="logits", **case.options())
    tensors, *of_members = present
    columns, soft_caps, scales = of_members
    vocab_size = vocab_size or case.common
    return log_linear_mix_triton(tensors, case.weights_NM, columns, vocab_size, soft_caps, scales)


@pytest.mark.parametrize("vocab", [507, 151_936, 262_144])
@pytest.mark.parametrize("name", CASES)
def test_fallback_matches_float64_truth(name: str, vocab: int) -> None:
    case = CASES[name](vocab)
    mixed_NV = log_linear_mix(case.logits, case.weights_NM, **case.options())
    wide_NV = log_linear_mix(case.logits, case.weights_NM, vocab_size=vocab + 13, **case.options())
    assert wide_NV.shape[1] == vocab + 13
    check_mixed(case, mixed_NV, wide_NV)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("interpreter")
def test_kernel_matches_float64_truth(name: str) -> None:
    case = CASES[name](507)
    check_mixed(case, interpreted(case), interpreted(case, vocab_size=2100))  # two tiles


@pytest.mark.usefixtures("interpreter")
def test_kernel_matches_float64_truth_at_the_largest_vocabulary() -> None:
    case = CASES["banned tokens"](262_144)
    check_mixed(case, interpreted(case))


@pytest.mark.usefixtures("interpreter")
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    case = make_case(507)
    alone = Case(
        [z[2:3] for z in case.logits if z is not None], case.weights_NM[2:3], case.tokens_N
    )
    torch.testing.assert_close(interpreted(case)[2:3], interpreted(alone), atol=0, rtol=0)
    together = log_linear_mix(case.logits, case.weights_NM)[2:3]
    torch.testing.assert_close(
        log_linear_mix(alone.logits, alone.weights_NM), together, atol=0, rtol=0
    )


def test_fallback_works_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(1000, rows=7)
    whole = log_linear_mix(case.logits, case.weights_NM)
    monkeypatch.setattr("prefmix.mixing.kernels.log_linear_mix._BLOCK_ELEMENTS", 2500)
    torch.testing.assert_close(log_linear_mix(case.logits, case.weights_NM), whole, atol=0, rtol=0)


def test_one_tensor_of_all_members() -> None:
    logits_NMV, weights_NM = logits_and_weights(rows=3, members=4, vocab=100)
    torch.testing.assert_close(log_linear_mix(logits_NMV, weights_NM), mix(logits_NMV, weights_NM))


def test_is_one_operator_to_the_compiler() -> None:
    def normalised(logits_NMV: torch.Tensor, weights_NM: torch.Tensor) -> torch.Tensor:
        return log_linear_mix(logits_NMV, weights_NM, soft_cap=[None, 30.0]).log_softmax(dim=-1)

    inputs = logits_and_weights(rows=3, members=2, vocab=100)
    compiled = torch.compile(normalised, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), normalised(*inputs))


@pytest.mark.parametrize(
    ("logits", "weights_NM", "options", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 2), {}, "weights have 2 columns for 3 members"),
        ([torch.zeros(3, 4)], torch.zeros(2, 1), {}, r"member 0 must be \[2, W\]"),
        ([torch.zeros(2, 4)], torch.zeros(2, 1).half(), {}, "weights must be float32"),
        ([torch.zeros(2, 4).int()], torch.zeros(2, 1), {}, "must be floats; got torch.int32"),
        ([torch.zeros(2, 4, device="meta")], torch.zeros(2, 1), {}, "on meta, weights on cpu"),
        (torch.zeros(2, 4), torch.zeros(2, 1), {}, r"\[N, M, W\]; got \[2, 4\]"),
        (torch.zeros(2, 1, 4), torch.zeros(2, 1), {"scale": [1, 2]}, "scale has 2 entries for 1"),
        (torch.zeros(2, 1, 4), torch.zeros(2, 1), {"vocab_size": 0}, "vocab_size must be at least"),
        (torch.zeros(2, 1, 4), torch.zeros(2, 1), {"soft_cap": [-1]}, "soft_cap must be positive"),
        (torch.zeros(2, 1, 4), torch.zeros(2, 1), {"soft_cap": [0]}, "soft_cap must be positive"),
        (torch.zeros(2, 1, 4), torch.zeros(2, 1), {"scale": [0.0]}, r"scale must be.* \[0.0\]"),
        (torch.zeros(2, 2, 4), torch.zeros(2, 2), {"scale": [1, -1]}, "scale must be positive"),
        (torch.zeros(2, 1, 4), torch.zeros(2, 1), {"scale": [torch.nan]}, "scale must be positive"),
    ],
)
def test_refuses_what_does_not_fit(
    logits: torch.Tensor, weights_NM: torch.Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        log_linear_mix(logits, weights_NM, **options)
