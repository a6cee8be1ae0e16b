"""No process of a server outlives the one that started it.

vLLM 0.32 ends its processes when it is asked to, or when one of them dies under its eyes. If the
process that started them is killed itself, its engine would stay, with its memory and its port.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

LOOK_S = 1.0
"""How often a process looks whether it still has its parent."""

_is_watching = threading.Event()


def end_with_parent() -> None:
    """Ends this process soon after its parent, if vLLM started it. May run repeatedly."""
    parent = multiprocessing.parent_process()
    if parent is None or _is_watching.is_set():
        return
    _is_watching.set()
    threading.Thread(target=_watch, args=(parent.pid,), name="parent-watch", daemon=True).start()


def _watch(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)  # there is nobody left to end in order for
