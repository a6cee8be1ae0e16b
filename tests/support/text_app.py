"""The routes that take vLLM's bodies, in an app without an engine: a request that passes all checks
is answered with what would have reached vLLM's handler.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from prefmix.server.config.limits import Limits
from prefmix.server.traffic.drain import Drain
from prefmix.server.traffic.middleware import BodyLimitMiddleware, TrafficMiddleware
from support.text_requests import mixture_state

GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hi."},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi."}]},
    "/v1/responses": {"input": "Hi."},
    "/tokenize": {"prompt": "Hi."},
    "/detokenize": {"tokens": [5]},
}
"""A small good body for each route."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer and what it cost the process."""

    response: httpx.Response
    stall_s: float
    """The longest time that the event loop did not run anything else."""
    grown_bytes: int
    """Resident memory at its largest during the request, less that before it."""

    @property
    def error(self) -> dict[str, Any]:
        """The refusal's error."""
        error: dict[str, Any] = self.response.json()["error"]
        return error


def text_app(patch: Callable[[Any, str, Any], None]) -> Any:
    """Makes the app. Imports vLLM.

    Args:
      patch: replaces an attribute of an object for the test's time.
    """
    from prefmix.server.api import generate, vllm_handlers
    from prefmix.server.api.state import STATE_KEY

    async def handled(body: Any, _: Request) -> Response:
        return JSONResponse({"reached": type(body).__name__})

    for name in ("complete", "complete_chat", "respond"):
        patch(vllm_handlers, name, handled)
    for name in ("tokenize", "detokenize"):
        patch(generate.vllm_tokenize, name, handled)
    app = FastAPI()
    state = mixture_state()
    setattr(app.state, STATE_KEY, state)
    app.include_router(generate.router)
    drain = Drain(timeout_s=1, unfinished=lambda: 0)
    inner = BodyLimitMiddleware(app, max_body_bytes=Limits().max_body_bytes)
    return TrafficMiddleware(inner, admission=state.admission, drain=drain, limits=Limits())


def post(app: Any, path: str, body: Any) -> Answer:
    """Sends a body, JSON or bytes, and measures what the answer costs."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def main() -> Answer:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            watch = _Watch()
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(watch.run())
                await asyncio.sleep(0.01)  # it is awake
                response = await client.post(
                    path, content=content, headers={"Content-Type": "application/json"}
                )
                await asyncio.sleep(0)
                watching.cancel()
        return Answer(
            response=response, stall_s=watch.stall_s, grown_bytes=watch.peak - watch.before
        )

    return asyncio.run(main())


class _Watch:
    """Wakes up all the time and notes the longest sleep and the largest memory."""

    def __init__(self) -> None:
        self.before = self.peak = _resident()
        self.stall_s = 0.0

    async def run(self) -> None:
        woken = time.perf_counter()
        try:
            while True:
                await asyncio.sleep(0.002)
                self._look(woken)
                woken = time.perf_counter()
        finally:
            self._look(woken)

    def _look(self, woken: float) -> None:
        self.stall_s = max(self.stall_s, time.perf_counter() - woken)
        self.peak = max(self.peak, _resident())


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
