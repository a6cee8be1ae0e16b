"""ASGI middleware that limits what comes in: body size and time, overload, drain, deadline.

BodyLimitMiddleware is around every route. TrafficMiddleware is around it and concerns the routes
that generate text or token ids: it refuses their requests before the body is read while too many
wait or the server is ending, and terminates them at their deadline.
"""

from __future__ import annotations

import asyncio
import math
from http import HTTPStatus

from fastapi.responses import JSONResponse
from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from prefmix.mixing.shown_value import shown
from prefmix.server.config.limits import Limits
from prefmix.server.http.errors import RequestError
from prefmix.server.http.headers import header
from prefmix.server.telemetry.load_metrics import count_refused
from prefmix.server.telemetry.metrics import NO_PROFILE, REQUESTS
from prefmix.server.traffic import drain as draining
from prefmix.server.traffic.admission_control import AdmissionController, OverloadedError
from prefmix.server.traffic.drain import Drain
from prefmix.server.traffic.freed_memory import FreedMemory
from prefmix.server.traffic.request_body import (
    MAX_ARRIVING_BYTES,
    Arriving,
    BodyTooLargeError,
    BodyTooSlowError,
    ClientGoneError,
    has_body,
    read_body,
    replayed,
)
from prefmix.server.traffic.request_lifetime import RequestLifetime, Termination

TIMEOUT_HEADER = "x-prefmix-timeout"
"""A request's header: the seconds it may take. It can only shorten the server's own limit."""

TEXT_PATHS = frozenset({"/v1/completions", "/v1/chat/completions", "/v1/responses"})
"""Paths whose POST generates text."""

TOKEN_PATHS = frozenset({"/tokenize", "/detokenize"})
"""Paths whose POST occupies the tokenizer, which requests for text need, too."""

MAX_TOKENIZING = 16
"""Most requests of TOKEN_PATHS at a time in one API process."""


_REFUSALS: dict[type[RequestError], str] = {
    BodyTooLargeError: "body_too_large",
    BodyTooSlowError: "body_too_slow",
    OverloadedError: "overloaded",
}


class BodyLimitMiddleware:
    """ASGI middleware: 413 for a body that is too long, 408 for one that takes too long.

    503 for one that comes while too many are on their way.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self.app = app
        self._max_body_bytes = max_body_bytes
        self._freed = FreedMemory()
        self._arriving = Arriving(max(MAX_ARRIVING_BYTES, max_body_bytes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body and passes the request on, or answers."""
        if scope["type"] != "http" or not has_body(scope):
            await self.app(scope, receive, send)
            return
        try:
            body = await read_body(
                scope, receive, limit=self._max_body_bytes, arriving=self._arriving
            )
        except ClientGoneError:
            return
        except (BodyTooLargeError, BodyTooSlowError, OverloadedError) as error:
            count_refused(_REFUSALS[type(error)])
            response = error.response()
            # A slow client is still sending; a client that sent too much is answered as usual.
            if isinstance(error, BodyTooSlowError):
                response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        try:
            await self.app(scope, replayed(body, receive), send)
        finally:
            self._freed.note(len(body))


class TrafficMiddleware:
    """ASGI middleware: admission, drain and deadline of requests for text and token ids."""

    def __init__(
        self, app: ASGIApp, *, admission: AdmissionController, drain: Drain, limits: Limits
    ) -> None:
        """Args: app: the application, with BodyLimitMiddleware around it."""
        self.app = app
        self._admission = admission
        self._drain = drain
        self._timeout_s = limits.request_timeout
        self._num_tokenizing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        path = _path(scope)
        if path not in TEXT_PATHS and path not in TOKEN_PATHS:
            await self.app(scope, receive, send)
            return
        is_text = path in TEXT_PATHS
        try:
            timeout_s = self._check(scope, is_text=is_text)
        except RequestError as error:
            await self._refusal(error, is_text=is_text)(scope, receive, send)
            return
        lifetime = RequestLifetime(scope, receive, send)
        self._drain.enter(lifetime)
        self._num_tokenizing += not is_text
        timer = None
        if timeout_s is not None:
            timer = asyncio.get_running_loop().call_later(
                timeout_s, lifetime.terminate, deadline(timeout_s)
            )
        try:
            await self.app(scope, lifetime.receive, lifetime.send)
        except Exception:
            if lifetime.termination is None:  # else the error is a consequence of the termination
                raise
        finally:
            if timer is not None:
                timer.cancel()
            await lifetime.close()
            self._num_tokenizing -= not is_text
            self._drain.leave(lifetime)

    def _check(self, scope: Scope, *, is_text: bool) -> float | None:
        """The seconds that the request may take. Raises: RequestError if it is refused."""
        if self._drain.is_on:
            raise OverloadedError(draining.MESSAGE, retry_after_s=draining.RETRY_AFTER_S)
        if is_text:
            self._admission.check()
        elif self._num_tokenizing >= MAX_TOKENIZING:
            raise OverloadedError(
                f"this server is busy: {MAX_TOKENIZING} requests for token ids are under way; try "
                "again after the seconds in Retry-After",
                retry_after_s=1,
            )
        return shortest(self._timeout_s, header(scope, TIMEOUT_HEADER.encode()))

    def _refusal(self, error: RequestError, *, is_text: bool) -> JSONResponse:
        """Counts a refusal and makes its answer; must be cheap, as overload means many of them."""
        response = error.response()
        is_overload = isinstance(error, OverloadedError)
        if is_text:
            REQUESTS.labels(NO_PROFILE, "refused" if is_overload else "rejected").inc()
        if not is_overload:
            return response
        count_refused("draining" if self._drain.is_on else "overloaded")
        if self._drain.is_on:
            response.headers["Connection"] = "close"
        return response


def shortest(own_s: float | None, asked: str | None) -> float | None:
    """The seconds a request may take: the server's limit, or its client's if that is shorter.

    Args:
      own_s: the server's limit in seconds; None without one.
      asked: the value of TIMEOUT_HEADER; None without one.
    Raises: RequestError if `asked` is no positive number.
    """
    if asked is None:
        return own_s
    try:
        seconds = float(asked)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RequestError(
            f"the header {TIMEOUT_HEADER} is {shown(asked)}; expected a number of seconds above 0"
        )
    return seconds if own_s is None else min(seconds, own_s)


def deadline(timeout_s: float) -> Termination:
    """The termination of a request that has taken too long."""
    return Termination(
        outcome="timeout",
        status=HTTPStatus.GATEWAY_TIMEOUT,
        message=f"the request was not answered within its {timeout_s:g} s; ask for fewer tokens "
        "(max_tokens), or allow it more time",
    )


def _path(scope: Scope) -> str | None:
    """The path of a POST; None for anything else."""
    is_post = scope["type"] == "http" and scope["method"] == "POST"
    return get_route_path(scope) if is_post else None
