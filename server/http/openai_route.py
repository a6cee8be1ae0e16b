"""A FastAPI route that reads its JSON body within limits; its errors have OpenAI's shape."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

import anyio.to_thread
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from prefmix.mixing.shown_value import shown
from prefmix.server.http.errors import EncodedBodyError, RequestError
from prefmix.server.http.request_json import read_json
from prefmix.server.http.validation_errors import validation_response

MAX_FIELDS = 256
"""Most fields of a body, known or not."""

LARGE_BYTES = 16 * 2**10
"""Longest body that is read and validated in the event loop, which takes some milliseconds."""

_ONE_AT_A_TIME = anyio.CapacityLimiter(1)
"""Limits the threads that read large bodies: Python runs one of them at a time anyway."""


class OpenAIRoute(APIRoute):
    """Answers broken JSON, bodies that do not validate and RequestError with one sentence each."""

    def check_body(self, request: Request, body: Any) -> None:
        """Checks a parsed body before it is validated; may run in a thread.

        Raises: RequestError if it has too many fields; each unknown one may be an error.
        """
        if isinstance(body, dict) and len(body) > MAX_FIELDS:
            raise RequestError(
                f"the body has {len(body)} fields; this server takes at most {MAX_FIELDS}"
            )

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps FastAPI's handler."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                await self._read(request)
                return await handler(request)
            except RequestError as error:
                return error.response()
            except RequestValidationError as error:
                return validation_response(error)

        return handle

    async def _read(self, request: Request) -> None:
        """Reads and checks the body, where FastAPI will find it."""
        encoding = request.headers.get("content-encoding", "")
        if encoding.strip().lower() not in ("", "identity"):
            raise EncodedBodyError(
                f"the request body has the Content-Encoding {shown(encoding)}; this server "
                "takes bodies as they are (identity): send it uncompressed, without this header"
            )
        body = await request.body()
        if not body or self.body_field is None or not _is_json(request):
            return
        if len(body) <= LARGE_BYTES:
            value = self._parse(request, body)
        else:
            value = await anyio.to_thread.run_sync(
                self._parse_and_validate, request, body, limiter=_ONE_AT_A_TIME
            )
        request._json = value  # where Starlette keeps it once request.json() has parsed it

    def _parse(self, request: Request, body: bytes) -> Any:
        value = read_json(body)
        self.check_body(request, value)
        return value

    def _parse_and_validate(self, request: Request, body: bytes) -> Any:
        """The body as the route's model, which FastAPI then takes as it is."""
        assert self.body_field is not None
        parsed = self._parse(request, body)
        value, errors = self.body_field.validate(parsed, {}, loc=("body",))
        if errors:
            raise RequestValidationError(errors, body=parsed)
        return value


def _is_json(request: Request) -> bool:
    """True if FastAPI will read the body as JSON."""
    message = Message()
    message["content-type"] = request.headers.get("content-type", "text/plain")
    subtype = message.get_content_subtype()
    is_json = subtype == "json" or subtype.endswith("+json")
    return message.get_content_maintype() == "application" and is_json
