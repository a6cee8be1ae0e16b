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
from prefmix.server.traffic.admission_control import OverloadedError

BODY_TIMEOUT_S = 30.0
"""Seconds a client may take to send a body."""

MAX_ARRIVING_BYTES = 256 * 2**20
"""Most bytes of all bodies on their way to one API process, or of one if that may have more."""

_BODY_HEADERS = (b"content-length", b"transfer-encoding")


class BodyTooLargeError(RequestError):
    """413: the body is larger than the server allows."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class BodyTooSlowError(RequestError):
    """408: the body did not arrive in time."""

    status = HTTPStatus.REQUEST_TIMEOUT


class Arriving:
    """The bytes of all bodies that are still on their way to this process.

    Clients that hold back the ends of many bodies would otherwise fill the memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Adds bytes that have come. Raises: OverloadedError if they are too many."""
        if self._num_bytes + num_bytes > self._limit:
            raise OverloadedError(
                "this server is busy: the request bodies on their way to it have more than "
                f"{self._limit} bytes; try again after the seconds in Retry-After",
                retry_after_s=1,
            )
        self._num_bytes += num_bytes

    def remove(self, num_bytes: int) -> None:
        """Removes the bytes of a body that is complete or refused."""
        self._num_bytes -= num_bytes


class ClientGoneError(Exception):
    """The client has closed the connection before its request was complete."""


def has_body(scope: Scope) -> bool:
    """True if a request announces a body."""
    return any(name in _BODY_HEADERS for name, _ in scope["headers"])


async def read_body(
    scope: Scope,
    receive: Receive,
    *,
    limit: int,
    arriving: Arriving,
    timeout_s: float = BODY_TIMEOUT_S,
) -> bytes:
    """Reads the body.

    Args:
      scope: the request's ASGI scope.
      receive: source of the body's messages.
      limit: largest number of bytes, announced in a header or not.
      arriving: the bodies of this process, to which this one belongs until it is complete.
      timeout_s: largest number of seconds.
    Raises: BodyTooLargeError before more than `limit` has been kept; BodyTooSlowError;
      OverloadedError; ClientGoneError.
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
                piece = message.get("body", b"")
                if len(body) + len(piece) > limit:
                    raise _too_large(f"has more than {limit} bytes", limit)
                arriving.add(len(piece))
                body += piece
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise BodyTooSlowError(
            f"the request body did not arrive within {timeout_s:g} s; {len(body)} bytes came"
        ) from None
    finally:
        arriving.remove(len(body))


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
