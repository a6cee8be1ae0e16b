"""Inputs that break kernels, and their true outputs in float64; for tests/unit and tests/gpu.

Shapes: N rows, M members, V vocabulary, C common vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from prefmix.mixing.kernels.mixture_statistics import MixtureStatistics
from prefmix.mixing.reference import mixture_logprobs_reference

SLACK = 1e-5
"""The excess allowed of a kernel's error over plain torch's in the same dtype, in nats."""

HUGE = 1e37
"""Logits of this size: sums of them stay within float32, differences from them do not cancel."""


@dataclass(frozen=True)
class Case:
    """Arguments of `log_linear_mix` and `mixture_statistics`."""

    logits: list[torch.Tensor | None]
    weights_NM: torch.Tensor
    tokens_N: torch.Tensor
    soft_cap: list[float | None] | None = None
    scale: list[float] | None = None

    @property
    def common(self) -> int:
        return min(tensor.shape[1] for tensor in self.logits if tensor is not None)

    def to(self, device: str) -> Case:
        """The case on another device, its strides unchanged."""
        logits = [None if tensor is None else _moved(tensor, device) for tensor in self.logits]
        return replace(
            self,
            logits=logits,
            weights_NM=_moved(self.weights_NM, device),
            tokens_N=_moved(self.tokens_N, device),
        )

    def options(self) -> dict[str, Any]:
        return {"soft_cap": self.soft_cap, "scale": self.scale}


def _moved(tensor: torch.Tensor, device: str) -> torch.Tensor:
    moved = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=torch.device(device)
    )
    return moved.copy_(tensor)


def make_case(
    vocab: int, dtype: torch.dtype = torch.float32, *, rows: int = 4, members: int = 3
) -> Case:
    """Rows of random logits and weights on the simplex."""
    logits, weights_NM, tokens_N = _drawn(vocab, rows, members)
    # Copies: callers write into them.
    return Case(
        [each.to(dtype, copy=True) for each in logits],
        weights_NM / weights_NM.sum(dim=1, keepdim=True),
        tokens_N.clone(),
    )


@lru_cache(maxsize=8)
def _drawn(
    vocab: int, rows: int, members: int
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """The random numbers of a case, which many cases share."""
    generator = torch.Generator().manual_seed(vocab + rows + members)
    logits = [torch.randn(rows, vocab, generator=generator).mul_(4) for _ in range(members)]
    weights_NM = torch.rand(rows, members, generator=generator) + 0.05
    return logits, weights_NM, torch.randint(vocab, (rows,), generator=generator)


def _one_hot(vocab: int) -> Case:
    case = make_case(vocab)
    weights_NM = torch.zeros(4, 3)
    weights_NM[[0, 1, 2, 3], [0, 1, 2, 0]] = 1.0
    for row, (member, poison) in enumerate(
        [(1, torch.nan), (2, torch.inf), (0, -torch.inf), (2, torch.nan)]
    ):
        case.logits[member][row] = poison
    return replace(case, weights_NM=weights_NM)


def _banned(vocab: int) -> Case:
    case = make_case(vocab)
    case.logits[0][:, 3] = -torch.inf
    case.logits[1][0, 1:] = -torch.inf  # one token left in row 0
    case.logits[2][1, : vocab // 2] = -torch.inf
    case.logits[2][2] = -torch.inf  # nothing left in row 2
    weights_NM = case.weights_NM.clone()
    weights_NM[1] = torch.tensor([0.5, 0.5, 0.0])  # row 1: member 2 bans for itself alone
    return replace(case, weights_NM=weights_NM, tokens_N=torch.tensor([0, 3, 5, 3]))


def _banned_where_unlikely(vocab: int) -> Case:
    """A policy with weight 0 bans a token whose probability in the mixture underflows float32."""
    case = make_case(vocab)
    case.logits[0][:, 3] = case.logits[1][:, 3] = -500.0
    case.logits[2][:2, 3] = -torch.inf
    return replace(case, weights_NM=torch.tensor([[0.5, 0.5, 0.0]] * 4))


def _negative(vocab: int) -> Case:
    case = make_case(vocab)
    case.logits[1][:, 7] = -torch.inf
    weights_NM = torch.tensor([[1.5, -0.5, 0.0], [1.0, 1.0, -1.0], [-0.2, 0.4, 0.8], [2, 0, -1]])
    return replace(case, weights_NM=weights_NM)


def _ragged(vocab: int) -> Case:
    case = make_case(vocab)
    padding = torch.full((4, 13), torch.nan)
    logits = [case.logits[0], *(torch.cat([each, padding], dim=1) for each in case.logits[1:])]
    return replace(case, logits=logits, tokens_N=torch.tensor([vocab, vocab - 1, -1, 10 * vocab]))


def _capped(vocab: int) -> Case:
    case = make_case(vocab)
    case.logits[0][:, 5] = -torch.inf
    return replace(case, soft_cap=[30.0, None, 5.0], scale=[1.0, 0.25, 2.0])


def _strided(vocab: int) -> Case:
    case = make_case(vocab)
    first, second, third = case.logits
    wide = torch.full((8, 2 * vocab), torch.nan)
    wide[::2, ::2] = third
    return replace(case, logits=[first.T.contiguous().T, second, wide[::2, ::2]])


def _strided_weights_and_tokens(vocab: int) -> Case:
    case = make_case(vocab)
    weights_NM = torch.full((8, 6), torch.nan)[::2, ::2].copy_(case.weights_NM)
    tokens_N = torch.full((8,), -1)[::2].copy_(case.tokens_N)
    return replace(case, weights_NM=weights_NM, tokens_N=tokens_N)


def _huge(vocab: int) -> Case:
    case = make_case(vocab)
    return replace(case, logits=[each * HUGE for each in case.logits])


def _far_from_zero(vocab: int) -> Case:
    case = make_case(vocab)
    return replace(case, logits=[each + 1000.0 for each in case.logits])


CASES: dict[str, Callable[[int], Case]] = {
    "one member": lambda vocab: make_case(vocab, members=1),
    "two members, bfloat16": lambda vocab: make_case(vocab, torch.bfloat16, members=2),
    "three members, float16": lambda vocab: make_case(vocab, torch.float16),
    "four members": lambda vocab: make_case(vocab, members=4, rows=2),
    "five members": lambda vocab: make_case(vocab, members=5, rows=2),
    "six members": lambda vocab: make_case(vocab, members=6, rows=1),
    "seven members": lambda vocab: make_case(vocab, members=7, rows=1),
    "eight members": lambda vocab: make_case(vocab, members=8, rows=2),
    "one row": lambda vocab: make_case(vocab, rows=1),
    "no rows": lambda vocab: make_case(vocab, rows=0),
    "one-hot weights, the others poisoned": _one_hot,
    "no weight at all": lambda vocab: replace(make_case(vocab), weights_NM=torch.zeros(4, 3)),
    "banned tokens": _banned,
    "banned where hardly possible": _banned_where_unlikely,
    "negative weights": _negative,
    "ragged vocabularies, tokens outside": _ragged,
    "soft-cap and scale": _capped,
    "strided": _strided,
    "strided weights and tokens": _strided_weights_and_tokens,
    "huge logits": _huge,
    "far from zero": _far_from_zero,
    "a member that did not run": lambda vocab: replace(
        case := make_case(vocab),
        logits=[None, *case.logits[1:]],
        weights_NM=case.weights_NM * torch.tensor([0.0, 1.0, 1.0]),
    ),
    "mixed dtypes": lambda vocab: replace(
        case := make_case(vocab),
        logits=[
            each.to(dtype)
            for each, dtype in zip(
                case.logits, (torch.bfloat16, torch.float32, torch.float16), strict=True
            )
        ],
    ),
}


def transformed(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The P members' logits [N, P, C], capped and scaled in `dtype`, and their weights [N, P]."""
    columns = [column for column, tensor in enumerate(case.logits) if tensor is not None]
    members = []
    for column in columns:
        z = case.logits[column][:, : case.common].to(dtype)
        if case.soft_cap and case.soft_cap[column]:
            capped = case.soft_cap[column] * torch.tanh(z / case.soft_cap[column])
            z = torch.where(z == -torch.inf, z, capped)
        members.append(z * case.scale[column] if case.scale else z)
    return torch.stack(members, dim=1), case.weights_NM[:, columns].to(dtype)


def mixture_logprobs_plain(case: Case) -> torch.Tensor:
    """The mixture's log-probs [N, C] by plain torch in float32, right for -inf and zero weights."""
    logits_NPC, weights_NP = transformed(case, torch.float32)
    part = weights_NP[:, :, None] != 0
    terms = torch.where(part, logits_NPC * weights_NP[:, :, None], 0.0)
    banned_NC = ((logits_NPC == -torch.inf) & part).any(dim=1)
    return terms.sum(dim=1).masked_fill(banned_NC, -torch.inf).log_softmax(dim=-1)


def check_mixed(case: Case, *mixed: torch.Tensor, slack: float = SLACK) -> None:
    """Checks results [N, V] against float64; the error of plain torch in float32 is allowed."""
    for mixed_NV in mixed:
        assert mixed_NV.dtype == torch.float32
        assert mixed_NV.shape[0] == case.weights_NM.shape[0]
        assert not mixed_NV.isnan().any(), "an element was not written, or 0 * inf left a trace"
        assert (mixed_NV[:, case.common :] == -torch.inf).all()
    if not len(case.weights_NM):
        return
    truth_NC = mixture_logprobs_reference(*transformed(case, torch.float64))
    plain_NC = mixture_logprobs_plain(case)
    for mixed_NV in mixed:
        got_NC = mixed_NV[:, : case.common].double().log_softmax(dim=-1)
        check_close(got_NC, truth_NC, plain_NC, slack=slack)


def check_close(
    got: torch.Tensor, truth: torch.Tensor, plain: torch.Tensor, *, slack: float = SLACK
) -> None:
    """Checks NaN and infinities against the truth, and finite errors against those of `plain`."""
    assert got.shape == truth.shape == plain.shape
    finite = truth.isfinite()
    if not finite.all():
        torch.testing.assert_close(got.isnan(), truth.isnan())
        infinite = truth.isinf()
        torch.testing.assert_close(got[infinite].double(), truth[infinite])
        got, truth, plain = got[finite], truth[finite], plain[finite]
    assert got.isfinite().all()
    if truth.numel():
        error, allowed = ((each - truth).abs_() for each in (got, plain))
        # Float32 has seven digits: numbers as large as HUGE may round differently.
        allowance = allowed.nan_to_num_(0.0).max() + slack
        allowance = allowance + 3e-7 * (truth.abs().max() - 100).clamp(min=0)
        assert error.max() <= allowance, (error.max(), allowed.max())


def statistics_reference(case: Case, dtype: torch.dtype = torch.float64) -> MixtureStatistics:
    """The statistics, row by row in plain torch; in float32 they give the errors to allow."""
    num_rows, num_members = case.weights_NM.shape
    log_partition_N, entropy_N, logprob_N = (torch.full((num_rows,), torch.nan) for _ in range(3))
    kl_NM, policy_logprobs_NM = (torch.full((num_rows, num_members), torch.nan) for _ in range(2))
    log_partition_N, entropy_N, logprob_N, kl_NM, policy_logprobs_NM = (
        each.to(dtype)
        for each in (log_partition_N, entropy_N, logprob_N, kl_NM, policy_logprobs_NM)
    )
    agrees_NM = torch.zeros(num_rows, num_members, dtype=torch.bool)
    columns = [column for column, tensor in enumerate(case.logits) if tensor is not None]
    logits_NPC, weights_NP = transformed(case, dtype)
    for n in range(num_rows):
        token = int(case.tokens_N[n])
        inside = 0 <= token < case.common
        policies_PC = logits_NPC[n].log_softmax(dim=-1)
        product_C = torch.zeros(case.common, dtype=dtype)
        banned_C = torch.zeros(case.common, dtype=torch.bool)
        for z_C, policy_C, weight in zip(logits_NPC[n], policies_PC, weights_NP[n], strict=True):
            if weight != 0:
                product_C = product_C + weight * policy_C
                banned_C |= z_C == -torch.inf
        product_C[banned_C] = -torch.inf
        log_partition_N[n] = product_C.logsumexp(dim=0)
        log_p_C = product_C - log_partition_N[n]
        p_C = log_p_C.exp()
        held_C = ~banned_C & (p_C != 0)
        if banned_C.all():
            entropy_N[n] = torch.nan
        else:
            entropy_N[n] = -(p_C * log_p_C)[held_C].sum()
        logprob_N[n] = log_p_C[token] if inside else -torch.inf
        for column, z_C, policy_C in zip(columns, logits_NPC[n], policies_PC, strict=True):
            if ((z_C == -torch.inf) & ~banned_C).any():
                kl_NM[n, column] = torch.inf
            elif not banned_C.all():
                kl_NM[n, column] = (p_C * (log_p_C - policy_C))[held_C].sum()
            if inside:
                policy_logprobs_NM[n, column] = policy_C[token]
                is_token = z_C[token] > -torch.inf and not policy_C.isnan().any()
                agrees_NM[n, column] = is_token and z_C[token] == z_C.max()
            else:
                policy_logprobs_NM[n, column] = -torch.inf
    return MixtureStatistics(
        log_partition_N, entropy_N, logprob_N, kl_NM, policy_logprobs_NM, agrees_NM
    )


def check_statistics(case: Case, got: MixtureStatistics, *, slack: float = SLACK) -> None:
    """Checks against float64; the error of plain torch in float32 is allowed."""
    truth, plain = statistics_reference(case), statistics_reference(case, torch.float32)
    for name, value, true_value, plain_value in zip(
        MixtureStatistics._fields, got, truth, plain, strict=True
    ):
        try:
            if value.dtype == torch.bool:
                torch.testing.assert_close(value, true_value)
            else:
                assert value.dtype == torch.float32
                check_close(value, true_value, plain_value, slack=slack)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}\n{value}\n{true_value}") from None
