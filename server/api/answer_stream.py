"""A streamed answer, which ends as soon as its client has disconnected."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterable, Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from prefmix.server.http.errors import sendable
from prefmix.server.telemetry.failed_policies import failure
from prefmix.server.traffic.request_lifetime import SCOPE_KEY, RequestEndedError, RequestLifetime

ERROR_EVENT = b'data: {"error"'
"""The beginning of the event with which vLLM reports an error in the middle of a stream."""

SendAll = Callable[[AsyncIterable[Any], Send], Awaitable[None]]
"""Sends an answer's chunks as parts of the body; the end of the body is sent by AnswerStream."""


class AnswerStream(StreamingResponse):
    """A streaming response whose disconnect is noticed by the request's RequestLifetime.

    Starlette's own class would start a second listener, in an anyio task group.
    """

    def __init__(self, response: StreamingResponse, send_all: SendAll) -> None:
        """Takes over the body, status, headers and background task of `response`."""
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
        """Sends the head, the chunks and the end."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        await self._send_all(self.body_iterator, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def failure_event(error: BaseException) -> bytes | None:
    """The last event of a Responses API stream that raised `error`; None for a mistake of ours.

    vLLM 0.32 has no such event, or raises while it makes one, so that the stream would break off
    without a word: if a policy has failed, and if the engine refuses the request.
    """
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

    message, code = failure.get(), "server_error"
    if message is None:
        refusal = create_error_response(error).error
        if refusal.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return None
        message, code = sendable(refusal.message), "invalid_prompt"
    body = {"type": "error", "code": code, "message": message, "param": None}
    return f"event: error\ndata: {json.dumps(body, ensure_ascii=False)}\n\n".encode()
