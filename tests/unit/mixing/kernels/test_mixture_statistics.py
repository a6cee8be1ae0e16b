"""Statistics against float64 truth, and the identities that tie them together."""

from __future__ import annotations

import pytest
import torch

from prefmix.mixing.kernels.members import present_members
from prefmix.mixing.kernels.mixture_statistics import MixtureStatistics, mixture_statistics
from support.kernels.cases import CASES, Case, check_statistics, make_case

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


def measured(case: Case) -> MixtureStatistics:
    return mixture_statistics(case.logits, case.weights_NM, case.tokens_N, **case.options())


def interpreted(case: Case) -> MixtureStatistics:
    from prefmix.mixing.kernels.mixture_statistics_triton import mixture_statistics_triton

    present = present_members(case.logits, case.weights_NM, what="logits", **case.options())
    tensors, *of_members = present
    return MixtureStatistics(
        *mixture_statistics_triton(tensors, case.weights_NM, case.tokens_N, *of_members)
    )


@pytest.mark.parametrize("vocab", [507, 151_936, 262_144])
@pytest.mark.parametrize("name", CASES)
def test_fallback_matches_float64_truth(name: str, vocab: int) -> None:
    case = CASES[name](vocab)
    check_statistics(case, measured(case))


@pytest.mark.parametrize("vocab", [507, 2100])  # one tile and three
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("interpreter")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy on -inf - -inf and the like
def test_kernel_matches_float64_truth(name: str, vocab: int) -> None:
    case = CASES[name](vocab)
    check_statistics(case, interpreted(case))


@pytest.mark.usefixtures("interpreter")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_kernel_matches_float64_truth_at_the_largest_vocabulary() -> None:
    case = CASES["one row"](262_144)
    check_statistics(case, interpreted(case))


def test_fallback_works_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(1000, rows=7)
    whole = measured(case)
    monkeypatch.setattr("prefmix.mixing.kernels.mixture_statistics._BLOCK_ELEMENTS", 2500)
    for value, expected in zip(measured(case), whole, strict=True):
        torch.testing.assert_close(value, expected)


def test_log_partition_is_minus_the_weighted_divergences() -> None:
    """log Z = -sum_m w_m KL(p || pi_m): the certificate's identity, a token at a time."""
    statistics = measured(case := make_case(507))
    weighted_N = (case.weights_NM * statistics.kl_NM).sum(dim=1)
    torch.testing.assert_close(statistics.log_partition_N, -weighted_N, atol=1e-5, rtol=1e-5)


def test_one_policy_alone_is_the_mixture() -> None:
    case = make_case(507, members=1)
    statistics = measured(case)
    torch.testing.assert_close(statistics.log_partition_N, torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(statistics.kl_NM, torch.zeros(4, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(statistics.logprob_N, statistics.policy_logprobs_NM[:, 0])


def test_equal_logits_agree_with_each_of_the_equals() -> None:
    logits_NMV = torch.tensor([[1.0, 3.0, 3.0, 0.0]]).expand(4, -1)[:, None]
    statistics = mixture_statistics(logits_NMV, torch.ones(4, 1), torch.arange(4))
    assert statistics.agrees_NM[:, 0].tolist() == [False, True, True, False]


def test_is_one_operator_to_the_compiler() -> None:
    case = make_case(100)

    def surprise(tokens_N: torch.Tensor) -> torch.Tensor:
        statistics = mixture_statistics(case.logits, case.weights_NM, tokens_N)
        return -statistics.logprob_N + statistics.kl_NM.sum(dim=1)

    compiled = torch.compile(surprise, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(case.tokens_N), surprise(case.tokens_N))


@pytest.mark.parametrize(
    ("tokens_N", "message"),
    [
        (torch.zeros(3).long(), r"int32 or int64 \[4\].* got torch.int64 \[3\]"),
        (torch.zeros(4), "got torch.float32"),
        (torch.zeros(4, device="meta").long(), "tokens are on meta, weights on cpu"),
    ],
)
def test_refuses_what_does_not_fit(tokens_N: torch.Tensor, message: str) -> None:
    case = make_case(10)
    with pytest.raises(ValueError, match=message):
        mixture_statistics(case.logits, case.weights_NM, tokens_N)
