"""The drain of a server that has been asked to end: no new requests, and time for running ones.

vLLM's own `--shutdown-timeout` cannot do this. vLLM stops its engine while the HTTP server still
takes requests, and with several API processes each process stops the engine at once, running
requests included. So vLLM's shutdown is made to wait for the drain, and then finds nothing to do.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from prefmix.server.config.limits import ENGINE_END_S, LAST_ANSWERS_S
from prefmix.server.telemetry.load_metrics import show_draining
from prefmix.server.traffic.request_lifetime import RequestLifetime, Termination

RETRY_AFTER_S = 5
"""Retry-After for requests that come during a drain. A proxy resends them elsewhere at once."""

MESSAGE = "this server is ending and takes no new requests; try again later, or on another server"

_TERMINATION = Termination(
    outcome="drained",
    status=HTTPStatus.SERVICE_UNAVAILABLE,
    message="this server is ending and could not finish the request in time; send it again",
    retry_after_s=RETRY_AFTER_S,
)
_POLL_S = 0.05


class Drain:
    """The running requests for text of this API process, and whether it takes new ones."""

    def __init__(self, *, timeout_s: float, unfinished: Callable[[], int]) -> None:
        """Args:
        timeout_s: seconds that running requests get to finish.
        unfinished: number of requests of this process in the engine.
        """
        self.is_on = False
        """True once no new requests are taken."""
        self._timeout_s = timeout_s
        self._unfinished = unfinished
        self._open: set[RequestLifetime] = set()
        show_draining(False)

    def enter(self, lifetime: RequestLifetime) -> None:
        """Adds a request that has begun."""
        self._open.add(lifetime)

    def leave(self, lifetime: RequestLifetime) -> None:
        """Removes a request that has ended."""
        self._open.discard(lifetime)

    async def run(self) -> None:
        """Refuses new requests, waits for running ones, and terminates those that take too long."""
        self.is_on = True
        show_draining(True)
        if self._open:
            line = f"waiting up to {self._timeout_s:g} s for {len(self._open)} requests"
            print(f"prefmix: ending: {line}", file=sys.stderr, flush=True)
        if await self._emptied(self._timeout_s, lambda: bool(self._open or self._unfinished())):
            return
        for lifetime in list(self._open):
            lifetime.terminate(_TERMINATION)
        await self._emptied(LAST_ANSWERS_S, lambda: bool(self._open))

    async def _emptied(self, limit_s: float, is_busy: Callable[[], bool]) -> bool:
        end = time.monotonic() + limit_s
        while is_busy():
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def delay_shutdown(self, engine_client: Any) -> None:
        """Makes vLLM's shutdown of the engine wait for `run`. Call it in the event loop.

        After a signal vLLM calls the shutdown in another thread, and the event loop goes on. A call
        in the loop's own thread comes at the very end, or after the engine's death, and waits for
        nothing.
        """
        loop = asyncio.get_running_loop()
        own_thread = threading.current_thread()
        shutdown = engine_client.shutdown

        def drain_then_shutdown(timeout: float | None = None) -> None:
            began = time.monotonic()
            if threading.current_thread() is not own_thread and loop.is_running():
                asyncio.run_coroutine_threadsafe(self.run(), loop).result()
            if timeout is not None:  # what the drain has taken counts
                left = max(ENGINE_END_S, timeout - (time.monotonic() - began))
                timeout = min(timeout, left)
            shutdown(timeout=timeout)

        engine_client.shutdown = drain_then_shutdown
