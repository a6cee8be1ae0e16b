"""Stalled connections are closed; idle and slow ones are not."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
from starlette.types import Receive, Scope, Send

from prefmix.server.traffic import connections, http_server
from support.loopback_server import LoopbackServer, serving

HEAD_S = 0.5
STALL_S = 0.7
KEEP_ALIVE_S = 2
SLACK_S = 5
"""The delay allowed on a machine that is busy with other work."""
LARGE = 32 * 2**20

finished: list[str] = []


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once, with the body unread; /large gets more bytes than a socket holds."""
    is_large = scope["path"] == "/large"
    length = LARGE if is_large else 2
    headers = [(b"content-length", str(length).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    block = b"x" * 2**16
    for _ in range(LARGE // len(block) if is_large else 0):
        await send({"type": "http.response.body", "body": block, "more_body": True})
        await asyncio.sleep(0)
    last = b"" if is_large else b"ok"
    await send({"type": "http.response.body", "body": last, "more_body": False})
    finished.append(scope["path"])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackServer]:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", HEAD_S)
    monkeypatch.setattr(connections, "STALL_TIMEOUT_S", STALL_S)
    finished.clear()
    with serving(
        lambda: application, change=http_server.limit_connections, timeout_keep_alive=KEEP_ALIVE_S
    ) as running:
        yield running


def connect(server: LoopbackServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def request(path: str = "/", *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: x", *lines, "", ""]).encode()


def answered(peer: socket.socket) -> bool:
    received = b""
    while not received.endswith(b"ok") and (more := peer.recv(1000)):
        received += more
    return received.startswith(b"HTTP/1.1 200") and received.endswith(b"ok")


def seconds_to_end(peer: socket.socket, trickle: bytes = b"") -> float:
    """The seconds until the server closes, while a byte is sent every 50 ms."""
    began = time.monotonic()
    peer.settimeout(0.05)
    rest = list(trickle)
    while True:
        try:
            if peer.recv(1000) == b"":
                break
        except TimeoutError:
            if rest:
                peer.sendall(bytes([rest.pop(0)]))
        except ConnectionError:
            break
        assert time.monotonic() - began < 30
    return time.monotonic() - began


def test_a_head_that_does_not_end_is_not_waited_for(server: LoopbackServer) -> None:
    with connect(server) as peer:
        assert HEAD_S <= seconds_to_end(peer, request()[:-2]) < HEAD_S + SLACK_S


def test_nor_is_one_that_follows_another_request(server: LoopbackServer) -> None:
    with connect(server) as peer:
        peer.sendall(request())
        assert answered(peer)
        assert HEAD_S <= seconds_to_end(peer, request()[:-2]) < HEAD_S + SLACK_S


def test_blank_lines_do_not_keep_a_connection(server: LoopbackServer) -> None:
    with connect(server) as peer:
        assert seconds_to_end(peer, b"\r\n" * 100) < HEAD_S + SLACK_S


def test_a_connection_may_rest_before_and_between_requests(server: LoopbackServer) -> None:
    with connect(server) as peer:
        for _ in range(3):
            time.sleep(2 * HEAD_S)
            peer.sendall(request())
            assert answered(peer)
        assert KEEP_ALIVE_S - 0.5 < seconds_to_end(peer) < KEEP_ALIVE_S + SLACK_S


def test_the_rest_of_a_refused_body_is_heard_for_a_while(server: LoopbackServer) -> None:
    with connect(server) as peer:
        peer.sendall(request("/", "content-length: 1000000"))
        assert answered(peer)
        peer.sendall(b"x" * 1_000_000 + request())
        assert answered(peer), "the client has sent it all and goes on"
    with connect(server) as peer:
        peer.sendall(request("/", "content-length: 10"))
        assert answered(peer)
        peer.sendall(b"x" * 10)
        time.sleep(2 * HEAD_S)
        peer.sendall(request())
        assert answered(peer), "having sent it all, it may rest"
    with connect(server) as peer:
        peer.sendall(request("/", "content-length: 1000000"))
        assert answered(peer)
        assert HEAD_S <= seconds_to_end(peer, b"x" * 1000) < HEAD_S + SLACK_S


def test_a_client_that_does_not_read_is_cut_off_and_others_are_not_held_up(
    server: LoopbackServer,
) -> None:
    with connect(server) as idle, connect(server) as slow, connect(server) as other:
        for peer in (idle, slow):
            peer.sendall(request("/large"))
        began = time.monotonic()
        received = 0
        while time.monotonic() - began < 3 * STALL_S:
            received += len(slow.recv(2**18))
            other.sendall(request())
            assert answered(other)
            time.sleep(0.05)
        assert "/large" in finished, "the stalled one has ended"
        assert received < LARGE
        while received < LARGE:
            more = slow.recv(2**20)
            assert more, "a client that reads is not cut off"
            received += len(more)
