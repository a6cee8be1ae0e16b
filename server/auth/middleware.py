"""The check of API keys and admin tokens, before a request's body is read.

vLLM protects a few path prefixes, /v1 among them, and leaves all other paths open, /tokenize
included. Here a path that server/auth/access_levels.py does not list needs the key.
"""

from __future__ import annotations

from http import HTTPStatus

from fastapi.responses import JSONResponse
from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefmix.server.auth import failed_logins
from prefmix.server.auth.access_levels import Level, level_of
from prefmix.server.auth.tokens import Tokens
from prefmix.server.http.errors import error_response

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
_HEADERS = {Level.OPEN: _ALWAYS, Level.ADMIN: _ALWAYS | {"Cache-Control": "no-store"}}
"""Headers for browsers, added unless an answer sets them itself."""

_SURFACES: dict[Level, failed_logins.Surface] = {Level.KEY: "key", Level.ADMIN: "admin"}
_MESSAGES = {
    Level.KEY: "this server needs its API key{wrong}; send it as 'Authorization: Bearer KEY'",
    Level.ADMIN: (
        "the admin routes need an admin token{wrong}; send it as 'Authorization: Bearer TOKEN' "
        "(the API key does not open them)"
    ),
}


class AccessMiddleware:
    """ASGI middleware: answers 401 unless the request has the key or token of its path's level."""

    def __init__(self, app: ASGIApp, *, keys: Tokens, admin: Tokens) -> None:
        """Args:
        keys: the API keys; without any the routes of level KEY are open.
        admin: the admin tokens; without any there must be no admin routes.
        """
        self.app = app
        self._secrets = {Level.KEY: keys, Level.ADMIN: admin}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 401."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        # The router's own reading of the path; any other would be a way around the check.
        level = level_of(get_route_path(scope))
        if level in _HEADERS:
            send = _with_headers(send, _HEADERS[level])
        if level is Level.OPEN:
            receive = _without_body(receive)
        if self._may_pass(level, scope):
            await self.app(scope, receive, send)
            return
        failed_logins.note(_SURFACES[level], scope)
        given = Headers(scope=scope).get("authorization", "")
        await unauthorized(level, given)(scope, receive, send)

    def _may_pass(self, level: Level, scope: Scope) -> bool:
        known = self._secrets.get(level)
        if not known:
            return True
        headers = Headers(scope=scope)
        is_known = known.holder(headers.get("authorization", "")) is not None
        return is_known or _is_preflight(scope, headers)


def unauthorized(level: Level, given: str) -> JSONResponse:
    """The answer to a request without a valid key or token. Args: given: its Authorization."""
    wrong = ", and the Authorization header that came has none of this server's" if given else ""
    response = error_response(_MESSAGES[level].format(wrong=wrong), status=HTTPStatus.UNAUTHORIZED)
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    """True for a browser's CORS preflight request, which has no credentials by design.

    The CORS middleware answers it; no route sees it.
    """
    return (
        scope.get("method") == "OPTIONS"
        and "origin" in headers
        and "access-control-request-method" in headers
    )


def _without_body(receive: Receive) -> Receive:
    """A `receive` without the request's body: no open route has one, so anyone's is not kept."""
    is_read = False

    async def receive_no_body() -> Message:
        nonlocal is_read
        if not is_read:
            is_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        message = await receive()
        while message["type"] == "http.request":
            message = await receive()
        return message

    return receive_no_body


def _with_headers(send: Send, headers: dict[str, str]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = MutableHeaders(scope=message)
            for name, value in headers.items():
                own.setdefault(name, value)
        await send(message)

    return send_with_headers
