"""One request for text on its way through the application, which can be ended from outside.

To the application an end looks like a client that hangs up: that way is taken often and well
tested, it frees the engine's slots, and it works in the middle of a stream. The client is told the
truth. One task listens for both; vLLM and Starlette have one each, and others for their work.
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

SCOPE_KEY = "prefmix.exchange"
"""Where an application finds the exchange it works on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Termination:
    """Why a request is ended before its answer is complete."""

    outcome: str
    """One of prefmix.server.telemetry.metrics.OUTCOMES."""
    status: HTTPStatus
    message: str
    retry_after_s: int | None = None


class GoneError(Exception):
    """Nobody waits for the answer any more: the client has hung up, or the request was ended."""


class RequestLifetime:
    """Stands between the HTTP server and the application."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._path: str = scope["path"]
        self._receive = receive
        self._send = send
        self._waits: list[asyncio.Timeout] = []
        self._listener: asyncio.Future[None] | None = None
        self._is_gone = False
        self._is_started = False
        self._is_stream = False
        self._is_finished = False
        self._at_end: list[Callable[[], None]] = []
        self.cut: Termination | None = None
        """Why it was ended; None if it was not."""
        scope[SCOPE_KEY] = self

    def at_end(self, action: Callable[[], None]) -> None:
        """Has something done once the application has let go of the request."""
        self._at_end.append(action)

    def end(self, cut: Termination) -> None:
        """Ends it, unless its answer is on its way already."""
        is_too_late = self._is_finished or (self._is_started and not self._is_stream)
        if self.cut is None and not is_too_late:
            self.cut = cut
            self._let_go()

    async def unless_gone(self, work: Awaitable[T]) -> T:
        """Does work of the application, which has the whole body by now, in a task of its own.

        Awaited where it stands, each of its steps would pass through the frames of all that stand
        around a route; with many requests at a time they are no longer in the processor's cache.

        Raises: GoneError, with the work cancelled, as soon as nobody waits for the answer.
        """
        task = asyncio.ensure_future(work)
        if self._listener is None:
            self._listener = asyncio.ensure_future(self._listen())
        return await self._until_let_go(task)

    async def receive(self) -> Message:
        """For the application: what comes from the client, or that it is over."""
        try:
            return await self._until_let_go(self._receive())
        except GoneError:
            return {"type": "http.disconnect"}

    async def _until_let_go(self, work: Awaitable[T]) -> T:
        wait = asyncio.timeout(0 if self._is_gone else None)  # 0 is soon: what has begun cleans up
        try:
            async with wait:
                self._waits.append(wait)
                result = await work
        except TimeoutError:
            if wait.expired():
                raise GoneError from None
            raise
        finally:
            self._waits.remove(wait)
        if wait.expired():  # vLLM answers its own cancellation with an error
            raise GoneError
        return result

    def _let_go(self) -> None:
        if not self._is_gone:
            self._is_gone = True
            for wait in self._waits:
                wait.reschedule(0)

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._let_go()

    async def send(self, message: Message) -> None:
        """For the application; what it says after the end is not sent."""
        if self.cut is not None:
            return
        if message["type"] == "http.response.start":
            self._is_started = True
            kind = header(message, b"content-type")
            self._is_stream = kind is not None and kind.startswith("text/event-stream")
        elif not message.get("more_body", False):
            self._is_finished = True
        await self._send(message)

    async def close(self) -> None:
        """Once the application has let go: tells the client if it was ended."""
        if self._listener is not None:
            self._listener.cancel()
        for action in self._at_end:
            action()
        if self.cut is None or self._is_finished:
            return
        self._is_finished = True
        if not self._is_started:
            response = error_response(self.cut.message, status=self.cut.status)
            if self.cut.retry_after_s is not None:
                response.headers["Retry-After"] = str(self.cut.retry_after_s)
            await response({"type": "http", "method": "POST"}, self._receive, self._send)
            return
        last = {"type": "http.response.body", "body": self._last_event(), "more_body": False}
        await self._send(last)

    def _last_event(self) -> bytes:
        assert self.cut is not None
        body = error_body(self.cut.message, status=self.cut.status)
        if self._path.endswith("/responses"):
            event = {"type": "error", **body["error"]}
            return f"event: error\ndata: {json.dumps(event)}\n\n".encode()
        return f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n".encode()
