"""Several requests on one connection whose client goes away: each of them learns of it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
from starlette.types import Receive, Scope, Send

from prefmix.server.traffic import http_server
from support.loopback_server import LoopbackServer, serving

PATIENCE_S = 60.0
told: list[str] = []


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Works until its client has gone, or for long; then answers."""
    await receive()  # the body
    try:
        message = await asyncio.wait_for(receive(), timeout=PATIENCE_S)
        told.append(str(message["type"]))
    except TimeoutError:
        told.append("nothing")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    told.append("answered")


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    told.clear()
    with serving(lambda: application, change=http_server.limit_connections) as running:
        yield running


@pytest.mark.parametrize("end", [b"\x00garbage\r\n\r\n", b""])
def test_the_request_at_work_learns_that_its_client_has_gone(
    server: LoopbackServer, end: bytes
) -> None:
    """The client sends garbage behind a second request, or closes the connection."""
    request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as peer:
        peer.sendall(request + request + end)
        if not end:
            peer.shutdown(socket.SHUT_WR)
        while len(told) < 2 and time.monotonic() < began + 2 * PATIENCE_S:
            time.sleep(0.02)
    assert told == ["http.disconnect", "answered"], (
        "and its answer, which nobody reads, is no error"
    )
    assert time.monotonic() - began < PATIENCE_S
