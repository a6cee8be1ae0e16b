"""The engines of contestants, which run beside each other on one device."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("vllm")


def options_of(monkeypatch: pytest.MonkeyPatch, *flags: str) -> dict[str, Any]:
    """The arguments of vLLM's engine, with these flags of the user."""
    import vllm

    from prefmix.bench.contestants.vllm_start import start_vllm

    monkeypatch.setattr(vllm, "LLM", lambda **options: options)
    settings = {"model": "org/model", "kv_cache_bytes": 2**30, "engine_flags": flags}
    found: dict[str, Any] = start_vllm(settings)
    return found


def test_an_engine_starts_beside_others_on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM wants 0.92 of the memory free at a start, whatever its cache takes."""
    options = options_of(monkeypatch)
    assert options["gpu_memory_utilization"] == 0.05
    assert options["kv_cache_memory_bytes"] == 2**30
    given = options_of(monkeypatch, "--gpu-memory-utilization", "0.4")
    assert given["gpu_memory_utilization"] == 0.4
