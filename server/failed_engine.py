"""An engine that fails ends the server with an error, whichever process notices it.

While the server starts, vLLM 0.32 waits for ever for the answer of an engine that has died.
Afterwards it ends the HTTP server of an API process whose engine has failed, and the process with
exit code 0, which its launcher takes for the end of one of several: it waits for the others, then
for the engines of its own machine. If the engine that failed is another machine's, or has not
ended, these run on, and the server would live without anybody who answers.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Coroutine
from typing import Any

DIED = "the engine's process died; its last words are above, if it had any"

_LOOK_S = 1.0
"""Seconds between two looks at the engine while the server starts."""


async def await_while_alive(engine_client: Any, work: Coroutine[Any, Any, None]) -> None:
    """Awaits work that asks the engine, as long as no engine has failed.

    Raises: RuntimeError if one has; what `work` raises.
    """
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_S))[0]:
            if engine_client.errored:
                raise RuntimeError(DIED)
    finally:
        task.cancel()
    await task


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
