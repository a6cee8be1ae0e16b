"""vLLM's shared-memory queues sleep while they wait, instead of spinning."""

from __future__ import annotations

import time

import pytest

pytestmark = pytest.mark.usefixtures("vllm")


def test_a_queue_that_waits_leaves_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.device_communicators import shm_broadcast

    from prefmix.mixing.workarounds.cpu_polling import sleep_while_polling

    monkeypatch.setattr(shm_broadcast, "sched_yield", shm_broadcast.sched_yield)  # undone after
    sleep_while_polling()
    worked, began = time.process_time(), time.monotonic()
    while time.monotonic() < began + 0.2:
        shm_broadcast.sched_yield()
    assert time.process_time() - worked < 0.15
