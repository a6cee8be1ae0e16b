"""The API key, on every route that is not listed as anything else.

vLLM guards path prefixes (/v1 and a few more) and leaves what lies outside them open, /tokenize
included. Here it is the other way round: a path that server/access.py does not list needs the key.
"""

from __future__ import annotations

from http import HTTPStatus

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import failed_logins
from server.access import Level, level_of
from server.errors import error_response
from server.tokens import Tokens

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
_HEADERS = {Level.OPEN: _ALWAYS, Level.ADMIN: _ALWAYS | {"Cache-Control": "no-store"}}
"""For browsers, where an answer does not say otherwise itself."""


class Guard:
    """ASGI middleware: 401 unless the request carries a key, where the path's level asks for one.

    Admin routes check their token themselves (server/admin.py), and take no key.
    """

    def __init__(self, app: ASGIApp, *, keys: Tokens) -> None:
        """Args:
        keys: the API keys; with none the routes of level KEY are open.
        """
        self.app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 401."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        # What the router will look at: another reading of the path would be a way around.
        level = level_of(get_route_path(scope))
        if level is not Level.KEY:
            await self.app(scope, receive, _with_headers(send, _HEADERS[level]))
        elif self._may_pass(scope):
            await self.app(scope, receive, send)
        else:
            failed_logins.note("key", scope)
            response = error_response(
                "this server needs its API key; send it as 'Authorization: Bearer KEY'",
                status=HTTPStatus.UNAUTHORIZED,
            )
            response.headers["WWW-Authenticate"] = "Bearer"
            await response(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if not self._keys:
            return True
        headers = Headers(scope=scope)
        return self._keys.holder(headers.get("authorization", "")) is not None or _is_preflight(
            scope, headers
        )


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    """A browser's question before a request, which has no credentials by design.

    The CORS middleware answers it; no route sees it.
    """
    return (
        scope.get("method") == "OPTIONS"
        and "origin" in headers
        and "access-control-request-method" in headers
    )


def _with_headers(send: Send, headers: dict[str, str]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = MutableHeaders(scope=message)
            for name, value in headers.items():
                own.setdefault(name, value)
        await send(message)

    return send_with_headers
