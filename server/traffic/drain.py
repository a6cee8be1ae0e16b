"""The end of a server that has been asked to end: no new requests, those under way first.

vLLM's own `--shutdown-timeout` cannot do this. It stops its engine while the HTTP server goes on
taking requests, and with several API processes each of them lets go of the engine at once, with
whatever was under way. So vLLM's shutdown is made to wait here, and then finds nothing to do.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from prefmix.server.config.limits import LAST_ANSWERS_S
from prefmix.server.telemetry.load_metrics import show_draining
from prefmix.server.traffic.request_lifetime import RequestLifetime, Termination

RETRY_AFTER_S = 5
"""What clients are told who come too late; their proxy, if any, sends them elsewhere at once."""

MESSAGE = "this server is ending and takes no more requests; try again, it or another may be there"

_CUT = Termination(
    outcome="drained",
    status=HTTPStatus.SERVICE_UNAVAILABLE,
    message="this server is ending and could not finish the request in time; send it again",
    retry_after_s=RETRY_AFTER_S,
)
_POLL_S = 0.05


class Drain:
    """The requests for text of this process, and whether it takes more."""

    def __init__(self, *, timeout_s: float, unfinished: Callable[[], int]) -> None:
        """Args:
        timeout_s: how long requests under way have.
        unfinished: how many requests of this process the engine works on.
        """
        self.is_on = False
        """Whether no more requests are taken."""
        self._timeout_s = timeout_s
        self._unfinished = unfinished
        self._open: set[RequestLifetime] = set()
        show_draining(False)

    def enter(self, exchange: RequestLifetime) -> None:
        """A request is under way."""
        self._open.add(exchange)

    def leave(self, exchange: RequestLifetime) -> None:
        """It has ended."""
        self._open.discard(exchange)

    async def run(self) -> None:
        """Takes no more requests and returns once there are none; cuts those that take too long."""
        self.is_on = True
        show_draining(True)
        if self._open:
            line = f"waiting up to {self._timeout_s:g} s for {len(self._open)} requests"
            print(f"prefmix: ending: {line}", file=sys.stderr, flush=True)
        if await self._emptied(self._timeout_s, lambda: bool(self._open or self._unfinished())):
            return
        for exchange in list(self._open):
            exchange.end(_CUT)
        await self._emptied(LAST_ANSWERS_S, lambda: bool(self._open))

    async def _emptied(self, limit_s: float, is_busy: Callable[[], bool]) -> bool:
        end = time.monotonic() + limit_s
        while is_busy():
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def hold_back(self, engine_client: Any) -> None:
        """Has vLLM's shutdown of the engine wait for `run`. To be called in the event loop.

        After a signal vLLM calls it in another thread, so that the loop goes on; called in the
        loop's own it comes at the very end, or after an engine's death, when there is no waiting.
        """
        loop = asyncio.get_running_loop()
        own_thread = threading.current_thread()
        shutdown = engine_client.shutdown

        def drain_then_shutdown(timeout: float | None = None) -> None:
            if threading.current_thread() is not own_thread and loop.is_running():
                asyncio.run_coroutine_threadsafe(self.run(), loop).result()
            shutdown(timeout=timeout)

        engine_client.shutdown = drain_then_shutdown
