"""Waits for the worker with short sleeps instead of a busy loop.

The defect: on the CPU backend vLLM 0.32 runs its one worker in a process of its own, and the engine
core waits for each step's result in a loop of sched_yield(). One core is always busy, and on Linux
6.18 other tasks on the same core may wait for seconds. A short sleep costs a step less than that.
Delete this file when vllm.distributed.device_communicators.shm_broadcast no longer calls
sched_yield in a loop.
"""

from __future__ import annotations

import time

_SLEEP_S = 50e-6
"""Much shorter than a step of a small model on CPU, which takes milliseconds."""


def sleep_while_polling() -> None:
    """Makes vLLM's shared-memory queues sleep where they would yield. May run repeatedly."""
    from vllm.distributed.device_communicators import shm_broadcast

    shm_broadcast.sched_yield = _sleep


def _sleep() -> None:
    time.sleep(_SLEEP_S)
