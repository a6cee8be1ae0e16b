"""Broken rows are found with the policy to blame; sound rows stay as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prefmix.mixing import wire
from prefmix.mixing.batch.broken_rows import find_broken_rows, names_of
from prefmix.mixing.batch.request_mixing import RequestMixing
from prefmix.mixing.kernels.log_linear_mix import log_linear_mix
from prefmix.mixing.spec import MixtureSpec, Policy

NAN, INF = torch.nan, torch.inf
ROWS, VOCAB, NUM_MEMBERS = 5, 33, 3
ABC = MixtureSpec(policies=tuple(Policy(name=name, model=name) for name in "abc"))


def mixture(
    weights_NM: torch.Tensor,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(ROWS, 8, generator=generator) for _ in range(NUM_MEMBERS)]
    logits = [torch.randn(ROWS, VOCAB, generator=generator) for _ in range(NUM_MEMBERS)]
    return hidden, logits


def test_sound_rows_are_not_touched() -> None:
    weights_NM = torch.full((ROWS, NUM_MEMBERS), 1 / NUM_MEMBERS)
    hidden, logits = mixture(weights_NM)
    logits[0][:, 4] = -INF  # a ban is no failure
    mixed_NV = log_linear_mix(logits, weights_NM)
    before = mixed_NV.clone()
    assert find_broken_rows(mixed_NV, hidden, weights_NM, logits) is None
    assert torch.equal(mixed_NV, before)


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["hidden", "logits"])
def test_the_row_and_the_policy_are_found(value: float, where: str) -> None:
    """Row 1 through member 2; in row 3 member 2 is as bad but has no weight."""
    weights_NM = torch.full((ROWS, NUM_MEMBERS), 1 / NUM_MEMBERS)
    weights_NM[3] = torch.tensor([0.5, 0.5, 0.0])
    hidden, logits = mixture(weights_NM)
    if where == "hidden":
        hidden[2][[1, 3], 5] = value
    for row in (1, 3):  # one NaN or +inf spoils a row, -inf only everywhere
        logits[2][row, slice(None) if value == -INF else 7] = value
    mixed_NV = log_linear_mix(logits, weights_NM)
    sound = mixed_NV[[0, 2, 3, 4]].clone()
    codes_N = find_broken_rows(mixed_NV, hidden, weights_NM, logits if where == "logits" else None)
    assert codes_N is not None
    assert codes_N.tolist() == [0, 3, 0, 0, 0]
    assert codes_N.dtype == torch.int32
    assert torch.equal(mixed_NV[[0, 2, 3, 4]], sound)
    assert not mixed_NV[1].any(), "what is drawn from a broken row must be a token"


def test_bans_that_leave_no_token_are_nobodys_alone() -> None:
    weights_NM = torch.tensor([[0.5, 0.0, 0.5]] * ROWS)
    hidden, logits = mixture(weights_NM)
    logits[0][2, :20] = -INF
    logits[2][2, 20:] = -INF
    codes_N = find_broken_rows(log_linear_mix(logits, weights_NM), hidden, weights_NM, logits)
    assert codes_N is not None
    assert codes_N.tolist() == [0, 0, NUM_MEMBERS + 1, 0, 0]
    assert names_of(NUM_MEMBERS + 1, RequestMixing(weights_M=(0.5, 0.0, 0.5)), ABC) == ("a", "c")


def test_the_first_of_several_is_named() -> None:
    weights_NM = torch.full((ROWS, NUM_MEMBERS), 1 / NUM_MEMBERS)
    hidden, logits = mixture(weights_NM)
    for member in (1, 2):
        hidden[member][0, 0] = NAN
        logits[member][0] = NAN
    codes_N = find_broken_rows(log_linear_mix(logits, weights_NM), hidden, weights_NM)
    assert codes_N is not None
    assert names_of(int(codes_N[0]), RequestMixing(weights_M=(1 / 3,) * 3), ABC) == ("b",)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy on NaN
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [33, 8192, 8192 + 33], ids="{} tokens".format)
def test_a_gpus_kernel_finds_the_same_rows_and_policies(vocab: int, dtype: torch.dtype) -> None:
    """It knows nothing of a policy whose logits alone are broken: nobody is blamed."""
    from prefmix.mixing.kernels.broken_rows_triton import broken_rows_triton

    generator = torch.Generator().manual_seed(0)
    wide_NV = torch.randn(8, vocab + 3, generator=generator).to(dtype)
    mixed_NV = wide_NV[:, :vocab]  # rows lie apart
    rows_ND = torch.randn(8, 3 * 2100 + 16, generator=generator).to(dtype)
    hidden = [*torch.split(rows_ND, [2100, 2100, 2100, 16], dim=-1)[:3]]
    weights_NM = torch.full((8, 3), 1 / 3)
    mixed_NV[0, 5:] = -INF  # bans that leave tokens
    mixed_NV[1, vocab - 1], hidden[2][1, 2099] = NAN, NAN
    mixed_NV[2, 0] = INF
    mixed_NV[3] = -INF
    mixed_NV[4, 7], weights_NM[4], hidden[0][4, 0] = NAN, torch.tensor([0.0, 0.5, 0.5]), NAN
    mixed_NV[5, 7], hidden[1][5, 3], hidden[2][5, 0] = NAN, -INF, INF
    hidden[1][6, 0] = NAN  # a member that spoils nothing is nobody's concern
    before_NV, beyond_NV = mixed_NV.clone(), wide_NV[:, vocab:].clone()
    codes_N = broken_rows_triton(mixed_NV, hidden, weights_NM)
    assert codes_N.tolist() == [0, 3, 4, 4, 4, 2, 0, 0]
    expected_NV = before_NV
    expected_N = find_broken_rows(expected_NV, hidden, weights_NM)
    assert expected_N is not None
    assert torch.equal(codes_N, expected_N)
    assert torch.equal(mixed_NV, expected_NV)
    assert torch.equal(wide_NV[:, vocab:], beyond_NV), "what lies behind a row is not written"


def test_all_with_weight_are_named_where_their_parameters_are_mixed() -> None:
    """Their one model runs as the first member, which may have no weight itself."""
    request = RequestMixing(weights_M=(0.0, 0.5, 0.5), mixes_parameters=True)
    assert names_of(1, request, ABC) == ("b", "c")


def test_nobody_alone_is_not_a_slot_without_rows() -> None:
    """Its code is one above the members that have rows, among which such a slot is not."""
    spec = replace(ABC, base="a", adapter_slots=1, max_adapter_rank=4, slots_without_kv=1)
    request = RequestMixing(weights_M=(0.5, 0.0, 0.5, 0.0))
    assert names_of(NUM_MEMBERS + 1, request, spec) == ("a", "c")


def test_names_survive_the_way_to_the_front_process() -> None:
    for names in (("one",), ("a-1", "b.2", "c_3")):
        assert wire.failed_policies("error", wire.to_stop_reason(names)) == names
    for other in (None, 7, "\n\n", "stop"):
        assert wire.failed_policies("error", other) == ()


@pytest.mark.parametrize("finish_reason", ["stop", "length", "abort", "repetition", None])
def test_a_clients_stop_string_is_no_word_of_the_engine(finish_reason: str | None) -> None:
    forged = wire.to_stop_reason(["polite"])
    assert wire.failed_policies(finish_reason, forged) == ()
