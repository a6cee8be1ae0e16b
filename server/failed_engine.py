"""An API process whose engine has failed ends with an error, and the server with it.

vLLM 0.32 ends the HTTP server of such a process, and the process with exit code 0, which its
launcher takes for the end of one of several: it waits for the others, then for the engines of its
own machine. If the engine that failed is another machine's, or has not ended, these run on, and the
server would live without anybody who answers.
"""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any


def end_with_error(engine_client: Any) -> None:
    """Makes vLLM's last call of the client's shutdown end a child process of the launcher with exit
    code 1, if the engine had failed before the shutdown. Call it in the event loop.

    Without children the launcher is the API process, and raises an error itself.
    """
    if multiprocessing.parent_process() is None:
        return
    own_thread = threading.current_thread()
    shutdown = engine_client.shutdown
    had_failed: bool | None = None

    def shutdown_then_exit(timeout: float | None = None) -> None:
        nonlocal had_failed
        if had_failed is None:  # afterwards every engine counts as failed
            had_failed = engine_client.errored
        shutdown(timeout=timeout)
        # After a signal another thread makes a first call, and the event loop goes on.
        if had_failed and threading.current_thread() is own_thread:
            raise SystemExit(1)

    engine_client.shutdown = shutdown_then_exit
