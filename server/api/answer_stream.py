"""A streamed answer on its way out, ended as soon as its client has gone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from prefmix.server.traffic.request_lifetime import SCOPE_KEY, RequestEndedError, RequestLifetime

SendAll = Callable[[AsyncIterable[Any], Send], Awaitable[None]]
"""Sends an answer's chunks as parts of the body, and leaves its end out."""


class AnswerStream(StreamingResponse):
    """Starlette's listens for its client by itself, in an anyio task group; for this one the
    request's lifetime listens, as for everything else that is done for the request."""

    def __init__(self, response: StreamingResponse, send_all: SendAll) -> None:
        """Takes a response's place. Args: response: not begun."""
        super().__init__(response.body_iterator, response.status_code)
        self.raw_headers = response.raw_headers
        self.background = response.background
        self._send_all = send_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer; returns early if nobody waits for it any more."""
        lifetime: RequestLifetime = scope[SCOPE_KEY]
        with contextlib.suppress(RequestEndedError):
            await lifetime.run(self.stream_response(send))
        if self.background is not None:
            await self.background()

    async def stream_response(self, send: Send) -> None:
        """Sends all of it."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        await self._send_all(self.body_iterator, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
