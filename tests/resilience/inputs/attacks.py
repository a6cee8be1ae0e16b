"""Hostile bytes for a raw HTTP port, drawn by a seed."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable
from dataclasses import dataclass

from resilience.harness.asked_server import KEY, TOKEN
from resilience.inputs import hostile_json
from resilience.inputs.hostile_json import GOOD_BODY, noise

PATHS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/models",
    "/v1/mixture",
    "/tokenize",
    "/detokenize",
    "/health",
    "/metrics",
    "/console",
    "/openapi.json",
    "/admin/weights",
    "/admin/default",
    "/admin/profiles/x",
    "/admin/policies",
    "/admin/policies/x",
    "/invocations",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attack:
    """One connection: the bytes that it sends, and its pauses and end."""

    kind: str
    pieces: list[bytes]
    pause_s: float = 0.0
    """The pause between two pieces."""
    half_closes: bool = False
    """True if the sending side is closed before the answer is read."""
    wants_answer: bool = False
    """True if the request is whole, so that the server has to answer it."""


def draw(rng: random.Random) -> Attack:
    """One attack of any kind."""
    return rng.choice(KINDS)(rng)


def _request(
    rng: random.Random,
    *,
    method: bytes = b"POST",
    path: bytes | None = None,
    version: bytes = b"HTTP/1.1",
    headers: list[tuple[bytes, bytes]] | None = None,
    body: bytes = b"",
    length: bytes | None = None,
    framed: bool = True,
) -> bytes:
    """A request with any part replaced. Args: framed: with Content-Length."""
    path = rng.choice(PATHS).encode() if path is None else path
    token = TOKEN if path.startswith(b"/admin") else KEY
    lines = [method + b" " + path + b" " + version, b"Host: 127.0.0.1"]
    lines += [b"Authorization: Bearer " + token.encode(), b"Content-Type: application/json"]
    lines += [name + b": " + value for name, value in headers or []]
    if framed:
        lines.append(b"Content-Length: " + (str(len(body)).encode() if length is None else length))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _request_lines(rng: random.Random) -> Attack:
    good = _request(rng, body=GOOD_BODY)
    lines = [
        noise(rng),
        b"\r\n" * rng.randint(1, 500) + good,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b" GET / HTTP/1.1\r\n\r\n",
        b"GET  /health  HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: a\n\n",
        b"GET /health HTTP/1.1\rHost: a\r\r",
        b"G" * rng.randint(1, 70_000) + b" / HTTP/1.1\r\n\r\n",
        _request(
            rng, method=rng.choice([b"PROPFIND", b"get", b"\xff", b"CONNECT", b"TRACE", b"*"])
        ),
        _request(rng, path=b"/" + b"a" * rng.choice([100, 8000, 70_000])),
        _request(rng, path=b"/health?" + b"a=b&" * rng.randint(1, 15_000), method=b"GET"),
        _request(rng, path=b"http://example.org/v1/completions", body=GOOD_BODY),
        _request(
            rng,
            path=rng.choice(PATHS).encode()
            + rng.choice(
                [
                    b"%00",
                    b"\0",
                    b"%ff%fe",
                    b"\xc3\xa9",
                    b"/../../etc/passwd",
                    b"/%2e%2e/",
                    b"//",
                    b";a=b",
                    b"?%",
                    b"#x",
                    b"%0d%0aX:y",
                    b"{}",
                    b"%F0%9F",
                ]
            ),
        ),
        _request(rng, path=b"/static/..%2f..%2f..%2fetc/passwd", method=b"GET"),
        _request(
            rng,
            path=b"/console/" + rng.choice([b"..%2fconsole.py", b"%2e%2e/admin.py", b"\0"]),
            method=b"GET",
        ),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) + noise(rng),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(64),
    ]
    return Attack(kind="request line", pieces=[rng.choice(lines)])


def _headers(rng: random.Random) -> Attack:
    nasty: list[list[tuple[bytes, bytes]]] = [
        [(b"X-%d" % number, b"a" * 20) for number in range(rng.choice([100, 1000, 3000]))],
        [(b"X-Long", b"a" * rng.choice([8_000, 60_000, 200_000]))],
        [(b"X-Null", b"a\0b")],
        [(b"X-\xc3\xa9", b"\xff\xfe\x80")],
        [(b"Bad Name", b"x")],
        [(b"", b"x")],
        [(b"X-Fold", b"a\r\n b")],
        [(b"Host", b"other"), (b"Host", b"")],
        [
            (
                b"Content-Length",
                rng.choice([b"5", b"-1", b"1e3", b"0x10", b"9" * 30, b"+3", b"", b"1, 2"]),
            )
        ],
        [
            (
                b"Transfer-Encoding",
                rng.choice([b"chunked", b"gzip, chunked", b"identity", b"xchunked"]),
            )
        ],
        [
            (
                b"Authorization",
                rng.choice(
                    [
                        b"Bearer",
                        b"Basic " + noise(rng).hex().encode(),
                        b"Bearer \xff\xfe",
                        b"Bearer " + b"a" * 9000,
                    ]
                ),
            )
        ],
        [(b"x-request-id", rng.choice([b"\xff" * 40, b"a" * 9000, b"\x1b[31m", b"", b"\t{}%s%n"]))],
        [
            (
                b"Content-Type",
                rng.choice(
                    [
                        b"text/xml",
                        b"application/json; charset=utf-16",
                        b"",
                        b"\xff",
                        b"multipart/form-data; boundary=" + b"a" * 500,
                    ]
                ),
            )
        ],
        [(b"Content-Encoding", rng.choice([b"gzip", b"br", b"deflate", b"zstd"]))],
        [(b"Expect", rng.choice([b"100-continue", b"200-ok"]))],
        [(b"If-Match", rng.choice([b'"', b"W/", b"*", b"\xff", b"9" * 5000]))],
        [(b"Range", b"bytes=0-,0-,0-" * 100)],
        [(b"Accept", b"text/event-stream;q=\xff"), (b"Cookie", b"a=" * 2000)],
        [(b"Connection", b"close, keep-alive, upgrade"), (b"TE", b"trailers")],
        [(b"X-Forwarded-For", b"' or 1=1 --"), (b"X-Data-Parallel-Rank", b"-1")],
    ]
    method = rng.choice([b"POST", b"GET", b"PUT", b"DELETE"])
    data = _request(rng, method=method, headers=rng.choice(nasty), body=GOOD_BODY)
    return Attack(kind="headers", pieces=[data], half_closes=rng.random() < 0.3)


def _bodies(rng: random.Random) -> Attack:
    path = rng.choice(
        [
            b"/v1/completions",
            b"/v1/chat/completions",
            b"/v1/responses",
            b"/tokenize",
            b"/detokenize",
            b"/admin/profiles/x",
            b"/admin/weights/apply",
            b"/admin/default",
            b"/admin/weights/rollback",
        ]
    )
    method = b"PUT" if path in (b"/admin/profiles/x", b"/admin/default") else b"POST"
    return Attack(
        kind="bodies", pieces=[_request(rng, method=method, path=path, body=hostile_json.draw(rng))]
    )


def _framing(rng: random.Random) -> Attack:
    """Bodies that are shorter or longer than announced, and malformed chunks."""
    if rng.random() < 0.5:
        length = str(len(GOOD_BODY) + rng.choice([-5, 1, 1000, 10**9])).encode()
        data = _request(rng, path=b"/v1/completions", body=GOOD_BODY, length=length)
        return Attack(kind="framing", pieces=[data], half_closes=True)
    chunks = rng.choice(
        [
            b"5\r\nhello\r\n0\r\n\r\n",
            b"zz\r\nhello\r\n0\r\n\r\n",
            b"-5\r\nhello\r\n0\r\n\r\n",
            b"ffffffffffffffffff\r\nhello\r\n",
            b"5\r\nhello",
            b"5\nhello\n0\n\n",
            b"5;" + b"a" * 9000 + b"\r\nhello\r\n0\r\n\r\n",
            b"%x\r\n" % len(GOOD_BODY) + GOOD_BODY + b"\r\n0\r\nX-Trailer: a\r\n\r\n",
            b"1\r\n{\r\n" * rng.randint(1, 3000) + b"0\r\n\r\n",
            noise(rng),
        ]
    )
    headers = [(b"Transfer-Encoding", b"chunked")]
    if rng.random() < 0.3:
        headers.append((b"Content-Length", b"3"))  # two framings at once: how requests are smuggled
    data = _request(rng, path=b"/v1/completions", headers=headers, framed=False) + chunks
    return Attack(kind="framing", pieces=[data], half_closes=True)


def _pipelines(rng: random.Random) -> Attack:
    some = [
        _request(rng, method=b"GET", path=rng.choice([b"/health", b"/v1/models", b"/metrics"]))
        for _ in range(rng.randint(2, 20))
    ]
    some += [
        _request(rng, path=b"/v1/completions", body=GOOD_BODY) for _ in range(rng.randint(0, 3))
    ]
    rng.shuffle(some)
    data = b"".join(some)
    if rng.random() < 0.5:
        data = data[: rng.randrange(len(data))]
    return Attack(kind="pipelines", pieces=[data], half_closes=rng.random() < 0.5)


def _torn(rng: random.Random) -> Attack:
    """A good request in pieces, of which the last may never come."""
    data = _request(rng, path=b"/v1/completions", body=GOOD_BODY)
    cuts = sorted(rng.sample(range(1, len(data)), rng.randint(1, 6)))
    edges = [0, *cuts, len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    if rng.random() < 0.5:
        pieces = pieces[:-1]
    return Attack(kind="torn", pieces=pieces, pause_s=0.005, half_closes=rng.random() < 0.5)


def _upgrades(rng: random.Random) -> Attack:
    path = rng.choice([b"/v1/realtime", b"/v1/completions", b"/", b"/health", b"/ws"])
    headers = rng.choice(
        [
            [
                (b"Connection", b"Upgrade"),
                (b"Upgrade", b"websocket"),
                (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
                (b"Sec-WebSocket-Version", b"13"),
            ],
            [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"), (b"Sec-WebSocket-Key", b"x")],
            [
                (b"Connection", b"Upgrade, HTTP2-Settings"),
                (b"Upgrade", b"h2c"),
                (b"HTTP2-Settings", b"AAMAAABkAARAAAAAAAIAAAAA"),
            ],
        ]
    )
    data = _request(rng, method=b"GET", path=path, headers=headers, framed=False)
    return Attack(kind="upgrades", pieces=[data, b"\x81\x85" + noise(rng)], pause_s=0.01)


KINDS: tuple[Callable[[random.Random], Attack], ...] = (
    _request_lines,
    _headers,
    _bodies,
    _bodies,
    _framing,
    _pipelines,
    _torn,
    _upgrades,
)
