"""Limits before anyone is asked for a key: heads, trailers, pipelines, connections."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from prefmix.server.traffic import http_protocol, http_server
from prefmix.server.traffic.http_protocol import LimitedProtocol
from prefmix.server.traffic.request_head import MAX_FIELD_BYTES, MAX_FIELDS
from support.loopback_server import LoopbackServer, serving

LARGE = 16 * 2**20
seen: list[Scope] = []
held = 0
most_held = 0


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the number of the body's bytes; /held answers once its client has gone."""
    global held, most_held
    seen.append(scope)
    held += 1
    most_held = max(held, most_held)
    try:
        size, is_more = 0, scope["path"] != "/unread"
        while is_more:
            message = await receive()
            size += len(message.get("body", b""))
            is_more = message.get("more_body", False)
        if scope["path"] == "/held":
            await receive()
        content = b"x" * LARGE if scope["path"] == "/large" else str(size).encode() + b"\n"
        headers = [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})
    finally:
        held -= 1


@pytest.fixture(params=["asyncio", "uvloop"])
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., LoopbackServer]]:
    """Starts the server in either event loop."""
    global most_held
    most_held = 0
    seen.clear()
    new_loop = uvloop.new_event_loop if request.param == "uvloop" else None
    with contextlib.ExitStack() as stack:

        def start(**limits: int) -> LoopbackServer:
            change = functools.partial(http_server.limit_connections, **limits)
            return stack.enter_context(
                serving(lambda: application, change=change, new_loop=new_loop)
            )

        yield start


def connect(server: LoopbackServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def head(*lines: str, target: str = "/", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "host: x", *lines, "", ""]).encode()


def exchange(server: LoopbackServer, *pieces: bytes) -> tuple[int, bytes]:
    """The status and body of the answer; the client sends all it has, however early it comes."""
    with connect(server) as peer:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                peer.sendall(piece)
        return read_answer(peer)


def read_answer(peer: socket.socket) -> tuple[int, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        more = peer.recv(2**16)
        assert more, f"the connection ended after {received!r}"
        received += more
    start, _, body = received.partition(b"\r\n\r\n")
    (length,) = (
        int(line.split(b":")[1])
        for line in start.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        more = peer.recv(2**16)
        assert more
        body += more
    return int(start.split()[1]), body


def chunked(*pieces: bytes) -> bytes:
    return head("transfer-encoding: chunked", method="POST") + b"".join(pieces)


WITHIN = [
    ("fields", head(*(f"x-{number}: 1" for number in range(MAX_FIELDS - 1)))),
    ("a field", head("x-long: " + "a" * (MAX_FIELD_BYTES - 6))),
    ("a target", head(target="/" + "a" * (MAX_FIELD_BYTES - 1))),
    ("all of it", head(*(f"x-{number}: {'a' * 5000}" for number in range(6)))),
]
BEYOND = [
    ("fields", 431, head(*(f"x-{number}: 1" for number in range(MAX_FIELDS)))),
    ("a field", 431, head("x-long: " + "a" * MAX_FIELD_BYTES)),
    ("a name", 431, head("a" * MAX_FIELD_BYTES + ": 1")),
    ("a target", 414, head(target="/" + "a" * MAX_FIELD_BYTES)),
    ("all of it", 431, head(*(f"x-{number}: {'a' * 5000}" for number in range(7)))),
    ("no end", 431, b"GET / HTTP/1.1\r\nx-long: " + b"a" * 2**24),
    ("no end of the method", 400, b"A" * 2**20),
    ("trailers", 431, chunked(b"0\r\n", *(b"x-%d: 1\r\n" % n for n in range(200)), b"\r\n")),
    ("a trailer", 431, chunked(b"0\r\nx-long: ", b"a" * 2**20, b"\r\n\r\n")),
    ("an extension", 431, chunked(b"1;", b"a" * 2**20, b"\r\nx\r\n0\r\n\r\n")),
]


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in WITHIN])
def test_what_proxies_let_through_is_answered(
    start: Callable[..., LoopbackServer], sent: bytes
) -> None:
    assert exchange(start(), sent) == (200, b"0\n")


@pytest.mark.parametrize(
    ("status", "sent"), [pytest.param(status, sent, id=name) for name, status, sent in BEYOND]
)
def test_what_proxies_refuse_is_refused_in_a_sentence(
    start: Callable[..., LoopbackServer], status: int, sent: bytes
) -> None:
    server = start()
    refused = exchange(server, sent)
    assert refused[0] == status
    error = json.loads(refused[1])["error"]
    assert error["code"] == status
    assert error["message"]
    assert exchange(server, head()) == (200, b"0\n"), "others are served"


def test_a_head_that_grows_slowly_is_refused_as_well(start: Callable[..., LoopbackServer]) -> None:
    line = b"x: " + b"a" * 1000 + b"\r\n"
    with connect(start()) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\n")
        num_sent = 0
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                peer.sendall(line)
                num_sent += len(line)
                peer.settimeout(0.001)
                with contextlib.suppress(TimeoutError):
                    assert peer.recv(12) == b"HTTP/1.1 431"
                    break
        assert num_sent < 10_000 * len(line)


def test_a_trailer_is_no_header_field(start: Callable[..., LoopbackServer]) -> None:
    answer = exchange(start(), chunked(b"2\r\nhi\r\n0\r\n", b"authorization: Bearer key\r\n\r\n"))
    assert answer == (200, b"2\n")
    assert [name for name, _ in seen[0]["headers"]] == [b"host", b"transfer-encoding"]


def test_a_body_of_tiny_pieces_is_taken(start: Callable[..., LoopbackServer]) -> None:
    assert exchange(start(), chunked(b"1\r\nx\r\n" * 50_000, b"0\r\n\r\n")) == (200, b"50000\n")


UPGRADES = {
    "websocket": (
        *("upgrade: websocket", "connection: upgrade", "sec-websocket-key: AAAA"),
        "sec-websocket-version: 13",
    ),
    "h2c": ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABk"),
    "and close": ("connection: close, upgrade", "upgrade: h2c"),
}
INNER = head(target="/smuggled")
BODIES = {
    "none": ((), b"", 0),
    "empty": (("content-length: 0",), b"", 0),
    "of a length": ((f"content-length: {len(INNER)}",), INNER, len(INNER)),
    "in chunks": (
        ("transfer-encoding: chunked",),
        b"%x\r\n" % len(INNER) + INNER + b"\r\n1\r\nx\r\n0\r\nx-trailer: 1\r\n\r\n",
        len(INNER) + 1,
    ),
}


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("body", BODIES)
def test_a_wish_for_another_protocol_is_ignored(
    start: Callable[..., LoopbackServer], upgrade: str, body: str
) -> None:
    """Java's client sends one with every first request, RFC 9110 (7.8) allows to ignore it."""
    server = start()
    framing, sent, size = BODIES[body]
    first = head(*UPGRADES[upgrade], *framing, method="POST", target="/first")
    answer = (200, b"%d\n" % size)
    for cut in (0, 1, len(first) - 1, len(first), len(first) + len(sent) // 2):
        whole = first + sent
        assert exchange(server, whole[:cut], whole[cut:]) == answer
    assert [scope["path"] for scope in seen] == ["/first"] * 5, "a body is no request"
    assert {scope["type"] for scope in seen} == {"http"}
    if "close" in upgrade:
        return
    with connect(server) as peer:  # the connection goes on, in a pipeline too
        for _ in range(3):
            peer.sendall(first + sent)
            assert read_answer(peer) == answer
        peer.sendall((first + sent) * 2 + head(target="/last"))
        received = b""
        while received.count(b"HTTP/1.1 200") < 3:
            more = peer.recv(2**16)
            assert more
            received += more
    assert [scope["path"] for scope in seen] == ["/first"] * 10 + ["/last"]


@pytest.mark.parametrize(
    "framing",
    [
        ("content-length: 3", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked", "content-length: 3"),
        ("content-length: 3", "content-length: 4"),
        ("transfer-encoding: chunked, identity",),
        ("transfer-encoding: xchunked",),
        ("content-length: +3",),
        ("content-length: 3, 3",),
    ],
)
def test_an_ignored_wish_opens_no_other_framing(
    start: Callable[..., LoopbackServer], framing: tuple[str, ...]
) -> None:
    """A framing that is refused without the wish is refused with it."""
    server = start()
    for more in ((), UPGRADES["h2c"]):
        sent = head(*more, *framing, method="POST") + b"0\r\n\r\n" + INNER
        assert exchange(server, sent)[0] == 400
    assert "/smuggled" not in [scope["path"] for scope in seen]


def test_no_tunnel_is_offered(start: Callable[..., LoopbackServer]) -> None:
    sent = b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: x\r\n"
    server = start()
    for more in (b"\r\n", b"content-length: %d\r\n\r\n" % len(INNER)):
        assert exchange(server, sent + more + INNER)[0] == 400
    assert seen == []


def test_a_refused_head_is_not_the_answer_to_an_earlier_request(
    start: Callable[..., LoopbackServer],
) -> None:
    with connect(start()) as peer:
        peer.sendall(head(target="/held") + head("x-long: " + "a" * MAX_FIELD_BYTES))
        assert peer.recv(100) == b""


def test_a_long_pipeline_is_not_taken_in_at_once(start: Callable[..., LoopbackServer]) -> None:
    num_requests = 9000
    server = start()
    scopes = 0

    async def count() -> int:
        return sum(len(protocol.pipeline) for protocol in server.server_state.connections)

    with connect(server) as peer:
        peer.sendall(head(target="/held") + head() * num_requests)
        end = time.monotonic() + 10
        while not seen and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        scopes = server.run_in_loop(count())
        assert 0 < scopes <= http_protocol.PIECE_BYTES // len(head()) + 1
    with connect(server) as peer:
        peer.sendall(head() * num_requests)
        received, answers = b"", 0
        while answers < num_requests:
            more = peer.recv(2**20)
            assert more
            received += more
            answers = received.count(b"HTTP/1.1 200")
    assert answers == num_requests
    assert most_held <= 2


def test_the_rest_of_a_refused_body_is_not_parsed_for_ever(
    start: Callable[..., LoopbackServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "MAX_REST_BYTES", 100_000)
    with connect(start()) as peer:
        peer.sendall(head("content-length: 100000000", target="/unread", method="POST"))
        assert read_answer(peer) == (200, b"0\n")
        peer.sendall(b"x" * 200_000 + head())
        assert peer.recv(100) == b"", "the connection is not used again"


def test_a_connection_that_only_waits_makes_room(start: Callable[..., LoopbackServer]) -> None:
    server = start(max_connections=3)
    with connect(server) as first, connect(server) as second, connect(server) as third:
        second.sendall(head())
        assert read_answer(second)[0] == 200
        third.sendall(head(target="/held"))
        while not any(scope["path"] == "/held" for scope in seen):
            time.sleep(0.01)
        first.sendall(head()[:-2])  # its head does not end
        with connect(server) as fourth:
            fourth.sendall(head())
            assert read_answer(fourth)[0] == 200
            assert first.recv(10) == b"", "it has waited longest"
            second.sendall(head())
            assert read_answer(second)[0] == 200


def test_so_does_one_whose_client_does_not_read(start: Callable[..., LoopbackServer]) -> None:
    server = start(max_connections=2)

    async def is_stalled() -> bool:
        return all(
            isinstance(protocol, LimitedProtocol) and protocol.flow.write_paused
            for protocol in server.server_state.connections
        )

    with connect(server) as first, connect(server) as second:
        for peer in (first, second):
            peer.sendall(head(target="/large"))
        while len(seen) < 2 or not server.run_in_loop(is_stalled()):
            time.sleep(0.01)
        assert exchange(server, head())[0] == 200
        received = 0
        with contextlib.suppress(ConnectionError):
            while more := first.recv(2**20):
                received += len(more)
        assert received < LARGE


def test_without_room_a_connection_is_refused(start: Callable[..., LoopbackServer]) -> None:
    server = start(max_connections=2)
    with connect(server) as first, connect(server) as second:
        for peer in (first, second):
            peer.sendall(head(target="/held"))
        while len(seen) < 2:
            time.sleep(0.01)
        with connect(server) as third:
            status, body = read_answer(third)
            assert status == 503
            assert "as many connections as it takes" in json.loads(body)["error"]["message"]
            assert third.recv(10) == b""
        first.shutdown(socket.SHUT_WR)
        first.recv(100)
    assert exchange(server, head())[0] == 200


def test_servers_that_others_make_have_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    protocols = uvicorn.config.HTTP_PROTOCOLS
    monkeypatch.setitem(protocols, "auto", protocols["auto"])
    http_server.limit_all_connections(max_connections=7)
    config = uvicorn.Config(application, log_level="critical")
    config.load()
    made = config.http_protocol_class
    assert isinstance(made, functools.partial)
    assert made.func is http_protocol.LimitedProtocol


def test_a_body_of_tiny_pieces_leaves_others_their_turn(
    start: Callable[..., LoopbackServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in parsed pieces: no turn has more than a few of a segment's hundred."""
    turns: list[int] = []
    parse, parse_piece = LimitedProtocol._parse, LimitedProtocol._parse_piece

    def counted_turn(self: LimitedProtocol) -> None:
        turns.append(0)
        parse(self)

    def counted_piece(self: LimitedProtocol, piece: memoryview) -> None:
        turns[-1] += 1
        parse_piece(self, piece)

    monkeypatch.setattr(LimitedProtocol, "_parse", counted_turn)
    monkeypatch.setattr(LimitedProtocol, "_parse_piece", counted_piece)
    sent = chunked(b"1\r\nx\r\n" * 200_000, b"0\r\n\r\n")
    assert exchange(start(), sent) == (200, b"200000\n")
    assert sum(turns) >= len(sent) // http_protocol.PIECE_BYTES
    assert max(turns) <= http_protocol.TURN_BYTES // http_protocol.PIECE_BYTES


def test_a_body_that_nobody_reads_is_not_kept(start: Callable[..., LoopbackServer]) -> None:
    server = start()
    with connect(server) as peer:
        # The first is held, the second's body comes meanwhile.
        peer.sendall(head(target="/held") + head("content-length: 100000000", method="POST"))
        peer.settimeout(0.3)
        num_sent = 0
        with contextlib.suppress(TimeoutError):
            while num_sent < 50_000_000:
                num_sent += peer.send(b"x" * 2**18)

        async def kept() -> int:
            return sum(
                len(protocol.cycle.body) + len(protocol._unparsed)
                for protocol in server.server_state.connections
                if isinstance(protocol, LimitedProtocol)
            )

        assert 0 < server.run_in_loop(kept()) < 2**20
