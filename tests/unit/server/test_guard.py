"""The API key: needed everywhere but on the paths that are named as open."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from server.guard import KeyGuard

KEYS = ["first-key", "schlüssel"]


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse("served")


def client(*, root_path: str = "") -> TestClient:
    routes = [Route("/{path:path}", answer, methods=["GET", "POST", "OPTIONS"])]
    app = KeyGuard(Starlette(routes=routes), keys=KEYS)
    return TestClient(app, root_path=root_path)


GUARDED = [
    "/v1/completions",
    "/v1/models",
    "/v1/mixture",
    "/tokenize",
    "/",
    "/healthy",
    "/metricsx",
]
GUARDED += ["//v1/completions", "/administer", "/health/../v1/models", "/docs2", "/consoles"]
# The admin routes ask for their own token, see test_admin.py.
OPEN = [
    "/admin/weights",
    "/health",
    "/ping",
    "/version",
    "/metrics",
    "/metrics/",
    "/openapi.json",
    "/docs",
    "/redoc",
    "/console",
    "/console/main.js",
]


@pytest.mark.parametrize("path", GUARDED)
def test_everything_else_needs_a_key(path: str) -> None:
    refused = client().get(path)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    error = refused.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("AuthenticationError", 401, None)
    assert "Authorization: Bearer" in error["message"]
    served = client().get(path, headers={"Authorization": "Bearer first-key"})
    assert served.text == "served"


@pytest.mark.parametrize("path", OPEN)
def test_open_paths_need_none(path: str) -> None:
    assert client().get(path).text == "served"


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
    ],
)
def test_anything_else_does_not(value: str) -> None:
    assert client().get("/v1/models", headers={"Authorization": value}).status_code == 401


def test_preflight_requests_pass() -> None:
    assert client().options("/v1/completions").text == "served"


def test_a_root_path_does_not_open_anything() -> None:
    behind_proxy = client(root_path="/api")
    assert behind_proxy.get("/api/v1/models").status_code == 401
    assert behind_proxy.get("/api/health").status_code == 200
