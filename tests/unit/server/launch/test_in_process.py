"""The environment in which an engine of this process starts."""

from __future__ import annotations

import os
from argparse import Namespace

import pytest

from prefmix.server.launch.in_process import _bounded_kv_cache
from prefmix.weights.engines.local import CPU_KV_CACHE


@pytest.mark.parametrize(
    ("given", "argument", "during"), [(None, None, "1"), (None, 2**28, None), ("8", None, "8")]
)
def test_the_kv_cache_is_bounded_unless_a_size_is_given(
    monkeypatch: pytest.MonkeyPatch, given: str | None, argument: int | None, during: str | None
) -> None:
    """On a CPU vLLM's variable overrides the argument, so it is set only without an argument."""
    monkeypatch.delenv(CPU_KV_CACHE, raising=False)
    if given is not None:
        monkeypatch.setenv(CPU_KV_CACHE, given)
    with _bounded_kv_cache(Namespace(kv_cache_memory_bytes=argument)):
        assert os.environ.get(CPU_KV_CACHE) == during
    assert os.environ.get(CPU_KV_CACHE) == given
