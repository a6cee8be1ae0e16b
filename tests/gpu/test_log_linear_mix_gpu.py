"""Mixing on a CUDA device at real vocabulary sizes; needs torch only."""

from __future__ import annotations

import pytest
import torch

from prefmix.mixing.kernels.log_linear_mix import log_linear_mix
from prefmix.mixing.reference import mixture_logprobs_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [32_000, 151_936])
def test_mix_matches_float64_truth_on_the_device(vocab: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_NMV = torch.randn(4, 3, vocab, generator=generator).mul_(5).to(dtype)
    weights_NM = torch.tensor([[0.2, 0.3, 0.5], [1, 0, 0], [0.5, 0.5, 0], [1.5, -0.5, 0]])
    logits_NMV[2, 2] = torch.nan
    truth_NV = mixture_logprobs_reference(logits_NMV, weights_NM)
    on_device = [member.cuda() for member in logits_NMV.unbind(dim=1)]
    mixed_NV = log_linear_mix(on_device, weights_NM.cuda(), vocab_size=vocab).cpu()
    assert (mixed_NV.double().log_softmax(dim=-1) - truth_NV).abs().max() < 1e-4
