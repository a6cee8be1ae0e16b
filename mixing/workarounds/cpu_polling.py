"""Waiting for the worker without taking its core.

On the CPU backend vLLM 0.32 runs its one worker in a process of its own, and the engine core waits
for each step's result in a loop of sched_yield(): a core is always busy, and on Linux 6.18 tasks of
other sessions on the same cores may wait for seconds. A short sleep costs a step less than that.
"""

from __future__ import annotations

import time

_NAP_S = 50e-6
"""Much shorter than a step of a small model on CPU, which takes milliseconds."""


def sleep_while_polling() -> None:
    """Has vLLM's shared-memory queues sleep where they would yield. May run repeatedly."""
    from vllm.distributed.device_communicators import shm_broadcast

    shm_broadcast.sched_yield = _nap


def _nap() -> None:
    time.sleep(_NAP_S)
