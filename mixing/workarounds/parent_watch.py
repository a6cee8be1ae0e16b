"""Ends each vLLM process soon after the process that started it.

The defect: vLLM 0.32 ends its processes on request, or when one of them dies. If the process that
started them is killed, the engine stays, with its memory and its port.
Delete this file when an engine ends by itself after its front process was killed by SIGKILL.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from typing import Any

LOOK_S = 1.0
"""Seconds between two looks at the parent."""

_OWN = "prefmix_own_coordinator"

_is_watching = threading.Event()


def watch_parent() -> None:
    """Ends this process within LOOK_S after its parent, if vLLM started it. May run repeatedly."""
    parent = multiprocessing.parent_process()
    if parent is None or _is_watching.is_set():
        return
    _is_watching.set()
    threading.Thread(target=_watch, args=(parent.pid,), name="parent-watch", daemon=True).start()


def watch_parent_of_coordinator() -> None:
    """Makes the coordinator of data-parallel engines watch its parent: it loads no plugins. Does
    nothing in children, which start none. May run repeatedly."""
    if multiprocessing.parent_process() is not None:
        return
    from vllm.v1.engine import coordinator

    if not hasattr(coordinator, _OWN):
        setattr(coordinator, _OWN, coordinator.DPCoordinatorProc.run_coordinator)
        own_class: Any = coordinator.DPCoordinatorProc
        own_class.run_coordinator = staticmethod(run_coordinator)


def run_coordinator(**kwargs: Any) -> None:
    """Runs vLLM's coordinator, whose arguments these are, in a process of its own."""
    from vllm.v1.engine import coordinator

    watch_parent()
    # A process that was forked has vLLM's own function beside the one put in its place.
    own = getattr(coordinator, _OWN, coordinator.DPCoordinatorProc.run_coordinator)
    own(**kwargs)


def _watch(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)  # nobody waits for an orderly end
