"""The API key, on every route that is not explicitly open.

vLLM guards path prefixes (/v1 and a few more) and leaves what lies outside them open, /tokenize
included. Here the list is the other way round: a path that is not named as open needs the key.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import error_response

OPEN_PATHS = ("/health", "/ping", "/version", "/metrics", "/load", "/openapi.json")
"""Probes, metrics and the description of the API: nothing that runs or reads a policy."""

OPEN_FOLDERS = ("/docs", "/redoc", "/metrics", "/static", "/admin", "/console")
"""Open with everything below them. The admin routes have tokens of their own and take no key; the
console's page has no secrets and asks for the key itself."""


def is_open(path: str) -> bool:
    """Whether a path is answered without a key."""
    return path in OPEN_PATHS or any(
        path == folder or path.startswith(folder + "/") for folder in OPEN_FOLDERS
    )


class KeyGuard:
    """ASGI middleware: 401 unless the request carries one of the keys as a bearer token."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[str]) -> None:
        self.app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 401."""
        if scope["type"] in ("http", "websocket") and not self._allowed(scope):
            response = error_response(
                "this server needs its API key; send it as 'Authorization: Bearer KEY'",
                status=HTTPStatus.UNAUTHORIZED,
            )
            response.headers["WWW-Authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        # Preflight requests carry no credentials by design.
        if scope.get("method") == "OPTIONS":
            return True
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return is_open(path) or self._has_key(Headers(scope=scope))

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        digest = _digest(token)
        # Every key is compared, so that the time taken says nothing about which one nearly matched.
        matches = [secrets.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
