"""Attention in Triton has room for heads of other sizes than the engine's first policy has."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("vllm")


def builder(monkeypatch: pytest.MonkeyPatch, *, head_size: int, num_kv_heads: int) -> Any:
    """A builder for layers of eight heads, in an engine whose model has two, of 64 numbers."""
    module = importlib.import_module("vllm.v1.attention.backends.triton_attn")
    config = importlib.import_module("vllm.config.compilation")
    kind = module.TritonAttentionMetadataBuilder
    monkeypatch.setattr(kind, "__init__", kind.__init__)  # put back after the test
    workaround = importlib.import_module("prefmix.mixing.workarounds.triton_head_sizes")
    for _ in range(2):
        workaround.take_sizes_of_layers()
    model = SimpleNamespace(
        get_num_attention_heads=lambda parallel: 8,
        get_num_kv_heads=lambda parallel: 2,
        get_head_size=lambda: 64,
        rswa_window=None,
    )
    compilation = SimpleNamespace(
        cudagraph_mode=config.CUDAGraphMode.FULL_AND_PIECEWISE,
        cudagraph_capture_sizes=[1, 2, 4, 8, 16, 32],
        static_forward_context={},
    )
    vllm_config = SimpleNamespace(
        model_config=model, compilation_config=compilation, parallel_config=None
    )
    spec = SimpleNamespace(head_size=head_size, num_kv_heads=num_kv_heads, block_size=16)
    made = kind(spec, ["layer"], vllm_config, torch.device("cpu"))
    assert made.vllm_config is vllm_config
    assert model.get_head_size() == 64, "others take it from the same configuration"
    return made


@pytest.mark.parametrize(("head_size", "room"), [(64, 64), (128, 128), (96, 128), (256, 256)])
def test_partial_results_have_room_for_the_heads_of_the_layers(
    head_size: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builder(monkeypatch, head_size=head_size, num_kv_heads=4)
    assert (found.headdim, found.num_heads_kv) == (head_size, 4)
    assert found.softmax_segm_output.shape[-1] == room
    assert found.seq_threshold_3D == 32, "128 programs are enough: as many requests by heads"


@pytest.mark.parametrize(("device", "takes"), [("cuda", True), ("cpu", False)])
def test_workers_on_gpus_take_the_sizes(
    device: str, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    workarounds = importlib.import_module("prefmix.mixing.workarounds")
    calls: list[bool] = []
    taken = "prefmix.mixing.workarounds.triton_head_sizes.take_sizes_of_layers"
    monkeypatch.setattr(taken, lambda: calls.append(True))
    for name in ("cpu_amx.permit_amx_tiles", "cpu_rotary.rotate_heads_by_torch"):
        monkeypatch.setattr(f"prefmix.mixing.workarounds.{name}", lambda: None)
    named = "prefmix.mixing.workarounds.cpu_uncompiled.run_uncompiled_on_errors"
    monkeypatch.setattr(named, lambda: None)
    settings = SimpleNamespace(device=torch.device(device))
    workarounds.apply_in_worker(SimpleNamespace(device_config=settings, use_v2_model_runner=True))
    assert calls == [True] * takes
