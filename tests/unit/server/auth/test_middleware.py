"""An API key is needed on every path, except those that are listed otherwise."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from prefmix.server.auth import failed_logins
from prefmix.server.auth.api_keys import as_tokens
from prefmix.server.auth.middleware import AccessMiddleware
from prefmix.server.auth.tokens import Token, Tokens
from prefmix.server.telemetry.metrics import AUTH_FAILURES

KEYS = ["first-key", "schlüssel"]


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse("served")


async def converse(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


def client(
    *, root_path: str = "", keys: Tokens | None = None, admin: Tokens | None = None
) -> TestClient:
    routes = [
        Route("/{path:path}", answer, methods=["GET", "HEAD", "POST", "OPTIONS"]),
        WebSocketRoute("/{path:path}", converse),
    ]
    protected: Any = AccessMiddleware(
        Starlette(routes=routes),
        keys=as_tokens(KEYS) if keys is None else keys,
        admin=Tokens([]) if admin is None else admin,
    )
    return TestClient(protected, root_path=root_path)


PROTECTED = [
    "/v1/completions",
    "/v1/models",
    "/v1/mixture",
    "/v1/responses/resp_1",
    "/tokenize",
    "/console/settings",
    "/console/report/index.json",
    "/console/report/fit/report.html",
    "/healthy",
    "/metricsx",
    "//v1/completions",
    "/administer",
    "/admin/nothing",
    "/health/../v1/models",
    "/health/x",
    "/docs2",
    "/consoles",
    "/console/a/b",
    "/HEALTH",
    "/v1/completions/",
    "/%76%31/models",
    "/health%2f..%2fv1/models",
    "/health;/v1/models",
    "/metrics/../v1/models",
    "/console/%2e%2e/%2e%2e/v1/models",
]
# Where there are no admin tokens: the admin paths lead nowhere.
OPEN = [
    "/admin/weights",
    "/admin/profiles/x",
    "/health",
    "/ping",
    "/version",
    "/metrics",
    "/metrics/",
    "/static/swagger-ui.css",
    "/openapi.json",
    "/docs",
    "/redoc",
    "/console",
    "/console/",
    "/console/main.js",
    "/console/reports",
    "/",
]


@pytest.mark.parametrize("path", PROTECTED)
def test_everything_else_needs_a_key(path: str) -> None:
    refused = client().get(path)
    # The client itself resolves dots, into paths that are protected as well.
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    error = refused.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("AuthenticationError", 401, None)
    assert "Authorization: Bearer" in error["message"]
    served = client().get(path, headers={"Authorization": "Bearer first-key"})
    assert served.text == "served"


@pytest.mark.parametrize("path", ["/health/../v1/models", "/health/..", "/docs/../v1/models"])
def test_dots_that_arrive_are_no_way_around(path: str) -> None:
    """The path is sent unchanged; an HTTP client would have resolved it."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "root_path": ""}
        middleware = AccessMiddleware(Starlette(), keys=as_tokens(KEYS), admin=Tokens([]))
        await middleware(scope, None, send)  # type: ignore[arg-type]

    asyncio.run(run())
    assert sent[0]["status"] == 401


@pytest.mark.parametrize("path", OPEN)
def test_open_paths_need_none(path: str) -> None:
    answer = client().get(path)
    assert answer.text == "served"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    kept_out = answer.headers.get("cache-control") == "no-store"
    assert kept_out == path.startswith("/admin/")


def test_key_and_token_open_their_own_side_only() -> None:
    http = client(admin=Tokens([Token.of("ops", "admin-token")]))
    for path in ("/admin/weights", "/admin/profiles/x", "/admin/weights/reload"):
        for headers in ({}, {"Authorization": "Bearer first-key"}, {"Authorization": "Bearer x"}):
            refused = http.put(path, headers=headers)
            assert refused.status_code == 401
            message = refused.json()["error"]["message"]
            assert "admin token" in message
            assert ("header that came has none of this server's" in message) == bool(headers)
            assert "Bearer x" not in message
            assert refused.headers["cache-control"] == "no-store"
        assert http.put(path, headers={"Authorization": "Bearer admin-token"}).status_code == 405
    as_admin = {"Authorization": "Bearer admin-token"}
    assert http.get("/v1/models", headers=as_admin).status_code == 401


def test_nothing_of_a_refused_request_is_read() -> None:
    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    async def send(message: Any) -> None:
        sent.append(message)

    tokens = Tokens([Token.of("ops", "admin-token")])
    for path in ("/v1/completions", "/admin/weights/apply"):
        sent: list[Any] = []
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "root_path": ""}
        middleware = AccessMiddleware(Starlette(), keys=as_tokens(KEYS), admin=tokens)
        asyncio.run(middleware(scope, receive, send))
        assert sent[0]["status"] == 401


def test_an_open_route_reads_no_body() -> None:
    """Anyone may ask it, and would fill the server's memory."""
    messages: list[Message] = [
        {"type": "http.request", "body": b"x" * 1000, "more_body": True},
        {"type": "http.request", "body": b"x" * 1000, "more_body": False},
        {"type": "http.disconnect"},
    ]
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([await receive(), await receive()])

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None: ...

    protected = AccessMiddleware(app, keys=as_tokens(KEYS), admin=Tokens([]))
    scope = {"type": "http", "method": "GET", "path": "/health", "headers": [], "root_path": ""}
    asyncio.run(protected(scope, receive, send))
    assert [message.get("body") for message in heard] == [b"", None]
    assert heard[1]["type"] == "http.disconnect"


def test_without_keys_nothing_needs_one() -> None:
    for path in (*PROTECTED, *OPEN):
        assert client(keys=Tokens([])).get(path).text == "served"


@pytest.mark.parametrize("key", [key.encode() for key in KEYS])
@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER"])
def test_every_key_opens(key: bytes, scheme: bytes) -> None:
    # HTTP headers are bytes; frameworks read them as Latin-1, so only ASCII keys survive.
    response = client().get("/v1/models", headers={b"Authorization": scheme + b" " + key})
    assert response.status_code == (200 if key.isascii() else 401)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "first-key",
        "Basic first-key",
        "Bearer first-key2",
        "Bearer first-ke",
        "Bearer first-key, Bearer other",
    ],
)
def test_anything_else_does_not(value: str) -> None:
    assert client().get("/v1/models", headers={"Authorization": value}).status_code == 401


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "POST", "PUT", "TRACE", "BREW"])
def test_no_method_is_a_way_around(method: str) -> None:
    assert client().request(method, "/v1/completions").status_code == 401


def test_only_a_browsers_preflight_passes_without_a_key() -> None:
    asks = {"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"}
    assert client().options("/v1/completions", headers=asks).text == "served"
    for name in asks:
        assert client().options("/v1/completions", headers={name: "x"}).status_code == 401
    assert client().post("/v1/completions", headers=asks).status_code == 401


def test_a_websocket_needs_the_key_as_well() -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        client().websocket_connect("/v1/realtime"),
    ):
        pass
    assert denied.value.status_code == 401
    with client().websocket_connect("/v1/realtime", headers={"Authorization": "Bearer first-key"}):
        pass


def test_a_root_path_does_not_open_anything() -> None:
    behind_proxy = client(root_path="/api")
    assert behind_proxy.get("/api/v1/models").status_code == 401
    assert behind_proxy.get("/api/health").status_code == 200
    assert behind_proxy.get("/v1/models").status_code == 401
    # The router strips a root path only at a slash, and so does the middleware.
    assert client(root_path="/v1").get("/v1health").status_code == 401


def test_refusals_are_counted_and_said_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    failed_logins._of.cache_clear()
    counter = AUTH_FAILURES.labels("key")
    before = counter._value.get()
    with caplog.at_level(logging.WARNING, "prefmix.audit"):
        for _ in range(20):
            client().get("/v1/models", headers={"Authorization": "Bearer not-this-one"})
    assert counter._value.get() - before == 20
    (line,) = [record.getMessage() for record in caplog.records]
    assert "API key" in line
    assert "testclient" in line
    assert "not-this-one" not in line
