"""Compiled kernels on a CUDA device, at real vocabulary sizes; needs torch and Triton only.

The cases are those that tests/unit runs in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from prefmix.mixing.kernels.log_linear_mix import log_linear_mix
from prefmix.mixing.kernels.mix_lm_head import mix_lm_head
from prefmix.mixing.kernels.mixture_statistics import MixtureStatistics, mixture_statistics
from prefmix.mixing.kernels.one_pass import OnePass, mix_in_one_pass
from prefmix.mixing.kernels.scaled_update import scaled_update
from support.kernels.cases import CASES, SLACK, Case, check_mixed, check_statistics, make_case
from support.kernels.head_cases import HEADS, check_heads, make_heads
from support.kernels.update_cases import SHAPES, check_update, make_update

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
VOCABS = [507, 32_000, 151_936, 262_144]
CUDA_SLACK = {"soft-cap and scale": 3e-5}
"""A tanh of 30 from the GPU's approximate exponential errs by about 30 times 2^-22."""


@pytest.fixture(autouse=True)
def nan_filled_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills new memory with NaN, so that an output which is never written is found."""
    empty = torch.empty

    def nan_filled(*args: object, **kwargs: object) -> torch.Tensor:
        return empty(*args, **kwargs).fill_(torch.nan)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", nan_filled)


def mixed(case: Case) -> torch.Tensor:
    return log_linear_mix(case.logits, case.weights_NM, **case.options())


def measured(case: Case) -> MixtureStatistics:
    return mixture_statistics(case.logits, case.weights_NM, case.tokens_N, **case.options())


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Makes every operation raise for which the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("name", CASES)
def test_mix_matches_float64_truth(name: str, vocab: int) -> None:
    case = CASES[name](vocab)
    got = mixed(case.to("cuda")).cpu()
    check_mixed(case, got, slack=CUDA_SLACK.get(name, SLACK))


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("name", CASES)
def test_statistics_match_float64_truth(name: str, vocab: int) -> None:
    case = CASES[name](vocab)
    got = MixtureStatistics(*(each.cpu() for each in measured(case.to("cuda"))))
    check_statistics(case, got, slack=CUDA_SLACK.get(name, SLACK))


def in_one_pass(case: Case) -> OnePass:
    return mix_in_one_pass(
        case.logits, case.weights_NM, vocab_size=case.common, scale=case.scale, measures=True
    )


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("name", [name for name in CASES if name != "soft-cap and scale"])
def test_one_pass_matches_float64_truth(name: str, vocab: int) -> None:
    case = CASES[name](vocab)
    on_device = case.to("cuda")
    found = in_one_pass(on_device)
    check_mixed(case, found.mixed_NV.cpu())
    assert found.statistics is not None
    figures = found.statistics(on_device.tokens_N)
    check_statistics(case, MixtureStatistics(*(each.cpu() for each in figures)))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_head_matches_float64_truth(name: str, fused: bool) -> None:
    inputs = HEADS[name]()
    *data, scale = inputs.to("cuda")
    check_heads(inputs, mix_lm_head(*data, scale=scale, vocab_size=140, fused=fused).cpu())


@pytest.mark.parametrize("rows", [1, 64, 200])
def test_head_matches_float64_truth_at_real_size(rows: int) -> None:
    inputs = make_heads(2048, 1536, rows=rows, vocab=32_003, dtype=torch.bfloat16)
    *data, _ = inputs.to("cuda")
    check_heads(inputs, mix_lm_head(*data, fused=True).cpu())


def _calls(vocab: int) -> dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]]:
    """Each kernel as a function of the weights alone, everything else on the device."""
    case = make_case(vocab, torch.bfloat16).to("cuda")
    heads = make_heads(256, 128, 64, rows=4, vocab=vocab, dtype=torch.bfloat16).to("cuda")

    def statistics(weights_NM: torch.Tensor) -> torch.Tensor:
        found = mixture_statistics(case.logits, weights_NM, case.tokens_N)
        per_member = torch.cat([found.kl_NM, found.policy_logprobs_NM], dim=1)
        return torch.cat([per_member, found.logprob_N[:, None], found.entropy_N[:, None]], dim=1)

    return {
        "log_linear_mix": (lambda weights: log_linear_mix(case.logits, weights), case.weights_NM),
        "mixture_statistics": (statistics, case.weights_NM),
        "mix_lm_head, fused": (
            lambda weights: mix_lm_head(heads.hidden, heads.heads, weights, fused=True),
            heads.weights_NM,
        ),
        "mix_lm_head, products": (
            lambda weights: mix_lm_head(heads.hidden, heads.heads, weights, fused=False),
            heads.weights_NM,
        ),
    }


NAMES = ["log_linear_mix", "mixture_statistics", "mix_lm_head, fused", "mix_lm_head, products"]


@pytest.mark.parametrize("name", NAMES)
def test_cuda_graph_follows_the_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # real memory: the graph's own is not to be filled at each replay
    call, weights_NM = _calls(32_000)[name]
    call(weights_NM)  # compiles, and measures configurations
    static_NM = weights_NM.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(static_NM)
    for new_NM in (weights_NM.flip(1), torch.eye(4, 3, device="cuda")):
        static_NM.copy_(new_NM)
        graph.replay()
        torch.testing.assert_close(captured, call(new_NM), atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_compiles_to_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    call, weights_NM = _calls(32_000)[name]
    compiled = torch.compile(lambda weights: call(weights).exp(), fullgraph=True)
    expected = call(weights_NM).exp()
    torch.testing.assert_close(compiled(weights_NM), expected, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_host_never_waits_for_the_device(name: str) -> None:
    call, weights_NM = _calls(32_000)[name]
    call(weights_NM)
    with no_host_sync():
        call(weights_NM)


def test_members_without_weight_are_not_read() -> None:
    """A member with weight 0 in all rows costs no time that grows with its bytes."""
    logits = torch.randn(256, 4, 151_936, device="cuda", dtype=torch.bfloat16)
    spread = torch.full((256, 4), 0.25, device="cuda")
    one_hot = torch.eye(4, device="cuda")[:1].expand(256, -1).contiguous()

    def milliseconds(weights_NM: torch.Tensor) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(3):
            log_linear_mix(logits, weights_NM)
        start.record()
        for _ in range(20):
            log_linear_mix(logits, weights_NM)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    # Bytes: 4 x 2 read and 4 written against 2 and 4, a ratio of 1/2.
    assert milliseconds(one_hot) < 0.8 * milliseconds(spread)


def test_addresses_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows, vocab = 16_384, 151_936  # 2.5e9 elements
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    logits = torch.zeros(rows, 1, vocab, device="cuda", dtype=torch.bfloat16)
    logits[-1, 0, -1] = 8.0
    weights_NM = torch.ones(rows, 1, device="cuda")
    tokens_N = torch.full((rows,), vocab - 1, device="cuda")
    found = mixture_statistics(logits, weights_NM, tokens_N)
    assert found.agrees_NM.all()
    torch.testing.assert_close(
        found.logprob_N[[0, -1]], logits[[0, -1], 0].float().log_softmax(dim=-1)[:, -1]
    )
    mixed_NV = log_linear_mix(logits, weights_NM)
    torch.testing.assert_close(mixed_NV[-1], logits[-1, 0].float(), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 28_672, 3, 32), (4096, 6144, 3, 48)])
def test_updates_match_float64_truth(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    case = make_update(*shape, dtype=dtype, device="cuda")
    with no_host_sync():
        found = scaled_update(*case)
    check_update(case, found)
