"""One read of the logits mixes, checks and measures: as each kernel and plain torch do alone."""

from __future__ import annotations

import random

import pytest
import torch

from prefmix.mixing.batch.broken_rows import find_broken_rows
from prefmix.mixing.kernels.one_pass import OnePass, mix_in_one_pass
from support.kernels.cases import CASES, Case, check_mixed, check_statistics, make_case

pytestmark = [
    pytest.mark.usefixtures("interpreter"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NumPy on -inf - -inf and the like
]
NAN, INF = torch.nan, torch.inf


def in_one_pass(case: Case, vocab_size: int | None = None, *, measures: bool = True) -> OnePass:
    return mix_in_one_pass(
        case.logits,
        case.weights_NM,
        vocab_size=vocab_size or case.common,
        scale=case.scale,
        measures=measures,
    )


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize(
    "name",
    [
        "two members, bfloat16",
        "eight members",
        "no rows",
        "one-hot weights, the others poisoned",
        "no weight at all",
        "banned tokens",
        "banned where hardly possible",
        "negative weights",
        "ragged vocabularies, tokens outside",
        "strided",
        "huge logits",
        "far from zero",
        "a member that did not run",
    ],
)
def test_mixture_and_statistics_match_float64_truth(name: str) -> None:
    """Two tiles, of which the second ends anywhere; then a part that holds no token at all."""
    case = CASES[name](607)
    found, wide = in_one_pass(case), in_one_pass(case, vocab_size=1300)
    check_mixed(case, found.mixed_NV, wide.mixed_NV)
    alone = in_one_pass(case, measures=False)
    torch.testing.assert_close(alone.mixed_NV, found.mixed_NV, atol=0, rtol=0)
    assert alone.statistics is None
    for each in (found, wide):
        assert each.statistics is not None
        check_statistics(case, each.statistics(case.tokens_N))


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("seed", range(12))
def test_random_rows_match_float64_truth(seed: int) -> None:
    """One policy to eight, large weights of both signs, bans of few, most and all tokens."""
    choice = random.Random(seed)
    torch.manual_seed(seed)
    rows, members = choice.randint(1, 2), choice.randint(1, 8)
    vocab = choice.choice([1, 7, 509, 1031, 2053])
    dtype = choice.choice([torch.float32, torch.bfloat16, torch.float16])
    spread, middle = choice.choice([1, 4, 30]), choice.choice([0, 500, -800])
    logits: list[torch.Tensor | None] = []
    for _ in range(members):
        own_NV = (torch.randn(rows, vocab) * spread + middle).to(dtype)
        if choice.random() < 0.4:
            own_NV[torch.rand(rows, vocab) < choice.choice([0.01, 0.5, 0.95])] = -INF
        logits.append(own_NV)
    weights_NM = {
        "simplex": torch.rand(rows, members).softmax(dim=1),
        "large": torch.randn(rows, members) * 20,
        "one": torch.eye(members)[torch.randint(members, (rows,))],
        "some": torch.rand(rows, members) * (torch.rand(rows, members) < 0.5),
    }[choice.choice(["simplex", "large", "one", "some"])]
    case = Case(logits, weights_NM, torch.randint(vocab, (rows,)))
    found = in_one_pass(case)
    assert found.statistics is not None
    check_statistics(case, found.statistics(case.tokens_N))


@pytest.mark.parametrize("vocab", [33, 1030, 17_000], ids="{} tokens".format)
def test_the_check_reads_what_the_pass_has_kept(vocab: int) -> None:
    """Broken by NaN, +inf or bans of everything, whichever part they are in."""
    from prefmix.mixing.kernels.broken_rows_triton import broken_rows_triton

    case = make_case(vocab, rows=7)
    first, second, third = (each for each in case.logits if each is not None)
    hidden = [torch.ones(7, 20) for _ in range(3)]
    first[0, : vocab - 1] = -INF  # bans that leave a token
    second[1, vocab - 1], hidden[1][1, 19] = NAN, NAN
    third[2, 0] = INF
    first[3] = -INF
    first[4, : vocab // 2], third[4, vocab // 2 :] = -INF, -INF
    case.weights_NM[5] = torch.tensor([0.0, 0.5, 0.5])
    first[5], hidden[0][5] = NAN, NAN
    found = in_one_pass(case, measures=False)
    expected_NV = found.mixed_NV.clone()
    expected_N = find_broken_rows(expected_NV, hidden, case.weights_NM)
    assert expected_N is not None
    codes_N = broken_rows_triton(found.mixed_NV, hidden, case.weights_NM, found.tops_NQ)
    assert codes_N.tolist() == expected_N.tolist() == [0, 2, 4, 4, 4, 0, 0]
    assert torch.equal(found.mixed_NV, expected_NV)


def test_rows_begin_where_a_gpu_writes_128_bits() -> None:
    found = in_one_pass(make_case(507))
    assert found.mixed_NV.shape == (4, 507)
    assert found.mixed_NV.stride() == (512, 1)
