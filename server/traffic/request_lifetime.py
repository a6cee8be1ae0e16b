"""The lifetime of one request for text, which the server can terminate: at a deadline, in a drain.

To the application a termination looks like a client that has disconnected. vLLM handles that case
well: it frees the engine's slots, in the middle of a stream, too. The client gets the true reason.
One task listens for the client's disconnect; vLLM and Starlette would each start one of their own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from starlette.types import Message, Receive, Scope, Send

from prefmix.server.http.errors import error_body, error_response
from prefmix.server.http.headers import header

T = TypeVar("T")

SCOPE_KEY = "prefmix.request_lifetime"
"""The key of an ASGI scope that holds the request's RequestLifetime."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Termination:
    """The reason to end a request before its answer is complete, and what its client gets."""

    outcome: str
    """One of prefmix.server.telemetry.metrics.OUTCOMES."""
    status: HTTPStatus
    message: str
    retry_after_s: int | None = None


class RequestEndedError(Exception):
    """Nobody waits for the answer: the client has disconnected, or the request was terminated."""


class RequestLifetime:
    """One request, between the HTTP server and the application: wraps `receive` and `send`."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._path: str = scope["path"]
        self._receive = receive
        self._send = send
        self._waits: list[asyncio.Timeout] = []
        self._listener: asyncio.Future[None] | None = None
        self._is_ended = False
        self._is_started = False
        self._is_stream = False
        self._is_answered = False
        self._on_close: list[Callable[[], None]] = []
        self.termination: Termination | None = None
        """The reason of the request's termination; None if it was not terminated."""
        scope[SCOPE_KEY] = self

    def on_close(self, action: Callable[[], None]) -> None:
        """Registers an action that `close` calls."""
        self._on_close.append(action)

    def terminate(self, termination: Termination) -> None:
        """Ends the request, unless its answer is complete or is being sent in one piece."""
        is_too_late = self._is_answered or (self._is_started and not self._is_stream)
        if self.termination is None and not is_too_late:
            self.termination = termination
            self._end()

    async def run(self, work: Awaitable[T]) -> T:
        """Runs the application's work in a task of its own, while someone waits for the answer.

        Call it once the whole body has been read. Without an own task each step of the work would
        resume through the frames of all middleware, which with many requests at a time have left
        the processor's cache.

        Raises: RequestEndedError, with the work cancelled, as soon as nobody waits for the answer.
        """
        task = asyncio.ensure_future(work)
        if self._listener is None:
            self._listener = asyncio.ensure_future(self._listen())
        return await self._until_ended(task)

    async def receive(self) -> Message:
        """The application's `receive`: the client's messages, or a disconnect if terminated."""
        try:
            return await self._until_ended(self._receive())
        except RequestEndedError:
            return {"type": "http.disconnect"}

    async def _until_ended(self, work: Awaitable[T]) -> T:
        # A timeout of 0 expires at the first wait, so that the work begins and cleans up.
        wait = asyncio.timeout(0 if self._is_ended else None)
        try:
            async with wait:
                self._waits.append(wait)
                result = await work
        except TimeoutError:
            if wait.expired():
                raise RequestEndedError from None
            raise
        finally:
            self._waits.remove(wait)
        if wait.expired():  # vLLM answers its own cancellation with an error
            raise RequestEndedError
        return result

    def _end(self) -> None:
        if not self._is_ended:
            self._is_ended = True
            for wait in self._waits:
                wait.reschedule(0)

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._end()

    async def send(self, message: Message) -> None:
        """The application's `send`; messages after a termination are dropped."""
        if self.termination is not None:
            return
        if message["type"] == "http.response.start":
            self._is_started = True
            kind = header(message, b"content-type")
            self._is_stream = kind is not None and kind.startswith("text/event-stream")
        elif not message.get("more_body", False):
            self._is_answered = True
        await self._send(message)

    async def close(self) -> None:
        """Ends the lifetime once the application has returned; a terminated client is told why."""
        if self._listener is not None:
            self._listener.cancel()
        for action in self._on_close:
            action()
        if self.termination is None or self._is_answered:
            return
        self._is_answered = True
        if not self._is_started:
            response = error_response(self.termination.message, status=self.termination.status)
            if self.termination.retry_after_s is not None:
                response.headers["Retry-After"] = str(self.termination.retry_after_s)
            await response({"type": "http", "method": "POST"}, self._receive, self._send)
            return
        last = {"type": "http.response.body", "body": self._last_event(), "more_body": False}
        await self._send(last)

    def _last_event(self) -> bytes:
        assert self.termination is not None
        body = error_body(self.termination.message, status=self.termination.status)
        if self._path.endswith("/responses"):
            event = {"type": "error", **body["error"]}
            return f"event: error\ndata: {json.dumps(event)}\n\n".encode()
        return f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n".encode()
