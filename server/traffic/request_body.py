"""Reading a request's whole body within a limit of bytes and a limit of time.

Neither uvicorn nor FastAPI has such limits. The body is passed on as one message, so that the only
message that can follow it is the client's disconnect.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.types import Message, Receive, Scope

from prefmix.server.http.errors import RequestError
from prefmix.server.http.headers import header

BODY_TIMEOUT_S = 30.0
"""Seconds a client may take to send a body."""

_BODY_HEADERS = (b"content-length", b"transfer-encoding")


class BodyTooLargeError(RequestError):
    """413: the body is larger than the server allows."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class BodyTooSlowError(RequestError):
    """408: the body did not arrive in time."""

    status = HTTPStatus.REQUEST_TIMEOUT


class ClientGoneError(Exception):
    """The client has closed the connection before its request was complete."""


def has_body(scope: Scope) -> bool:
    """True if a request announces a body."""
    return any(name in _BODY_HEADERS for name, _ in scope["headers"])


async def read_body(
    scope: Scope, receive: Receive, *, limit: int, timeout_s: float = BODY_TIMEOUT_S
) -> bytes:
    """Reads the body.

    Args:
      scope: the request's ASGI scope.
      receive: source of the body's messages.
      limit: largest number of bytes, announced in a header or not.
      timeout_s: largest number of seconds.
    Raises: BodyTooLargeError before more than `limit` has been kept; BodyTooSlowError;
      ClientGoneError.
    """
    declared = header(scope, b"content-length") or ""
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        raise _too_large(f"has {declared[:20]} bytes", limit)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientGoneError
                body += message.get("body", b"")
                if len(body) > limit:
                    raise _too_large(f"has more than {limit} bytes", limit)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise BodyTooSlowError(
            f"the request body did not arrive within {timeout_s:g} s; {len(body)} bytes came"
        ) from None


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that first returns `body`, then what the given `receive` returns."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _too_large(what: str, limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the request body {what}; this server takes {limit} (--max-body-bytes): send less at once"
    )
