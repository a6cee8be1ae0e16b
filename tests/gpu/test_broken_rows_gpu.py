"""Finding broken rows on a CUDA device: the same answers, and nothing waits for the device."""

from __future__ import annotations

import pytest
import torch

from prefmix.mixing.batch.broken_rows import find_broken_rows
from prefmix.mixing.kernels.one_pass import mix_in_one_pass

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_rows_are_found_without_a_host_sync() -> None:
    mixed_NV = torch.randn(5, 151_936, device="cuda")
    hidden = [torch.randn(5, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    weights_NM = torch.full((5, 3), 1 / 3, device="cuda")
    hidden[1][1, 7] = torch.nan
    mixed_NV[1] = torch.nan
    mixed_NV[3, 100_000] = torch.inf
    mixed_NV[4, 5:] = -torch.inf
    sound = mixed_NV[[0, 2, 4]].clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        codes_N = find_broken_rows(mixed_NV, hidden, weights_NM)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert codes_N is not None
    assert codes_N.tolist() == [0, 2, 0, 4, 0]
    assert torch.equal(mixed_NV[[0, 2, 4]], sound)
    assert not mixed_NV[[1, 3]].any()


@pytest.mark.parametrize("vocab", [507, 151_936])
def test_rows_that_are_mixed_in_one_pass_are_found_by_their_parts(vocab: int) -> None:
    logits = [torch.randn(5, vocab, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    hidden = [torch.randn(5, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    weights_NM = torch.full((5, 3), 1 / 3, device="cuda")
    hidden[1][1, 7] = torch.nan
    logits[1][1] = torch.nan
    logits[0][3, vocab - 1] = torch.inf
    logits[2][4, 5:] = -torch.inf
    torch.cuda.synchronize()
    mix_in_one_pass(logits, weights_NM, vocab_size=vocab)  # compiles, and measures configurations
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = mix_in_one_pass(logits, weights_NM, vocab_size=vocab)
        before = found.mixed_NV.clone()
        codes_N = find_broken_rows(found.mixed_NV, hidden, weights_NM, None, found.tops_NQ)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert codes_N is not None
    assert codes_N.tolist() == [0, 2, 0, 4, 0]
    assert torch.equal(found.mixed_NV[[0, 2, 4]], before[[0, 2, 4]])
    assert not found.mixed_NV[[1, 3]].any()
