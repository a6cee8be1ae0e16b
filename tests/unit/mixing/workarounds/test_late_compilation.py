"""Kernels that the engine's check compiles are none of vLLM's surprises; later ones are."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("vllm")


def test_vllms_monitor_rests_during_the_check_and_watches_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Triton tells it of each kernel, with `--jit-monitor-mode error`."""
    monitor = importlib.import_module("vllm.utils.jit_monitor")
    worker: Any = importlib.import_module("prefmix.mixing.engine.worker_extension").MixtureWorker()
    monkeypatch.setattr(monitor, "_handle_jit_event", monitor._handle_jit_event)
    monkeypatch.setattr(monitor, "_mode", "error")

    def compiled() -> None:
        monitor._log_triton_jit_compile("_logits_pass_kernel", {})

    with pytest.raises(RuntimeError, match="_logits_pass_kernel"):
        compiled()
    for _ in range(2):
        worker.prefmix_expect_compilation(True)
    compiled()
    for _ in range(2):
        worker.prefmix_expect_compilation(False)
    with pytest.raises(RuntimeError, match="causes a latency spike"):
        compiled()
