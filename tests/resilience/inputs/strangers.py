"""Requests without a key: heads, methods, paths, framings. None of them opens anything."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from prefmix.server.auth.access_levels import LEVELS, Level
from resilience.harness.asked_server import KEY, TOKEN
from resilience.inputs.hostile_requests import Hostile, request

_KIB, _MIB = 2**10, 2**20
_CLOSED = tuple(
    re.sub(r"\{[^}]*\}", "x", path) for path, level in LEVELS.items() if level is not Level.OPEN
)
_OPEN = tuple(path for path, level in LEVELS.items() if level is Level.OPEN and "{" not in path)
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")
_TOO_LARGE = (400, 414, 431)


def requests() -> Iterator[Hostile]:
    """Yields all of them."""
    for part in (_heads, _hosts, _protocols, _open_routes, _framings, _bodies):
        yield from part()


def bypasses() -> Iterator[Hostile]:
    """Yields every closed route, in every spelling, by every method, with every wrong secret."""
    secrets = ("", "wrong", KEY[:-1], KEY + "x", f"{KEY} {KEY}", KEY.upper())
    for path, method in itertools.product(_CLOSED, _METHODS):
        other = KEY if path.startswith("/admin") else TOKEN
        for secret in (*secrets, other):
            data = request(method, path, token=secret)
            yield _closed(
                f"{method} {path} with the key {secret[:8]!r}+{len(secret)}", data, (401,)
            )
    spellings = (
        *("{0}/", "/{0}", "//{0}", "/.{0}", "/health/..{0}", "/health/%2e%2e{0}", "/metrics/..{0}"),
        *(
            "/console/..{0}",
            "/static/..{0}",
            "/docs/..{0}",
            "{0}%00",
            "{0}%20",
            "{0};x",
            "{0}#/health",
        ),
        *(
            "{0}?/health",
            "{0}%2f",
            "{0}/.",
            "{0}/%2e",
            "http://127.0.0.1{0}",
            "http://{0}",
            "\\{0}",
        ),
        *("/health%2f..{0}", "/health\\..{0}", "/metrics{0}", "/%2e{0}", "{0}\t", "{0}%0d%0aX: y"),
    )
    for path, spelling, method in itertools.product(_CLOSED, spellings, ("GET", "POST")):
        name, data = f"{method} {spelling.format(path)}", request(method, spelling.format(path))
        if spelling.startswith("/metrics"):  # all paths below it are the metrics
            yield _stranger(name, data, lacks="max_model_len")
        else:
            yield _closed(name, data)
    for path in _CLOSED:
        wrong = request("GET", path, f"X-Api-Key: {KEY}", f"Cookie: key={KEY}")
        yield _closed(f"{path} with the key elsewhere", wrong, (401,))
        body = f"Authorization=Bearer {KEY}".encode()
        yield _closed(f"{path} with the key in a form", request("POST", path, body=body), (401,))
        twice = request("GET", path, f"Authorization: Bearer {KEY}", token="x")
        yield _closed(f"{path} with two keys", twice, (400, 401))
        basic = request("GET", path, f"Authorization: Basic {KEY}")
        yield _closed(f"{path} with a basic key", basic, (401,))
        rewritten = (
            f"X-Original-URL: {path}",
            f"X-Rewrite-URL: {path}",
            f"X-Forwarded-Prefix: {path}",
        )
        yield _stranger(
            f"{path} as a rewritten address", request("GET", "/health", *rewritten), lacks="object"
        )


def _closed(name: str, data: bytes, statuses: tuple[int, ...] = ()) -> Hostile:
    refused = (*range(300, 500),)
    return Hostile(name=name, data=data, is_open=True, statuses=statuses or refused, answers=1)


def _stranger(name: str, data: bytes, **expected: object) -> Hostile:
    return Hostile(name=f"stranger: {name}", data=data, is_open=True, **expected)  # type: ignore[arg-type]


def _heads() -> Iterator[Hostile]:
    for name, lines in (
        ("16 MiB of fields", [f"X-{at}: " + "a" * 1000 for at in range(16_000)]),
        ("one field of 16 MiB", ["X-A: " + "a" * 16 * _MIB]),
        ("a name of 1 MiB", ["X" * _MIB + ": a"]),
        ("100,000 short fields", ["a: b"] * 100_000),
        ("101 fields", [f"X-{at}: a" for at in range(101)]),
        ("a cookie of 9 KiB", ["Cookie: " + "a=b; " * 1800]),
        ("fields of 40 KiB in all", [f"X-{at}: " + "a" * 7000 for at in range(6)]),
    ):
        yield _stranger(name, request("GET", "/health", *lines), statuses=_TOO_LARGE)
        yield _stranger(
            f"{name} to a closed route",
            request("POST", "/v1/completions", *lines),
            statuses=_TOO_LARGE,
        )
    for name, path in (
        ("a path of 1 MiB", "/" + "a" * _MIB),
        ("a query of 1 MiB", "/health?" + "a=b&" * (_MIB // 4)),
        ("a path of 9 KiB of escapes", "/health" + "%2f" * 3000),
    ):
        yield _stranger(name, request("GET", path), statuses=_TOO_LARGE)
    yield _stranger("a query of 7 KiB", request("GET", "/metrics?" + "name[]=a&" * 800))
    yield _stranger("a query of metrics", request("GET", "/metrics?name[]=prefmix_draining"))
    yield _stranger(
        "a login of 7 KiB", request("GET", "/v1/models", token="a" * 7000), statuses=(401,)
    )
    yield _stranger(
        "1,000 lines before a request", b"\r\n" * 1000 + request("GET", "/health"), answers=None
    )
    yield _stranger("bytes without an end", b"A" * _MIB, answers=None, keeps_open=True)
    yield _stranger(
        "a head without an end",
        b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 200_000,
        answers=None,
        keeps_open=True,
    )


def _hosts() -> Iterator[Hostile]:
    evil = "rebound.example.org"
    for path in ("/health", "/console", "/console/", "/v1/models", "/docs", "/metrics"):
        data = request("GET", path, host=evil)
        yield _stranger(f"{path} of another host", data, statuses=(421,))
        forwarded = (
            f"X-Forwarded-Host: {evil}",
            "X-Forwarded-Proto: gopher",
            f"Forwarded: host={evil}",
        )
        data = request("GET", path, *forwarded)
        yield _stranger(f"{path} forwarded for another host", data, lacks=evil)
    yield _stranger("no host", request("GET", "/health", host=None), statuses=(400, 421))
    twice = request("GET", "/health", "Host: localhost")
    yield _stranger("two hosts", twice, statuses=(400, 421))
    yield _stranger("an empty host", request("GET", "/health", host=""), statuses=(400, 421))
    absolute = request("GET", f"http://{evil}/health")
    yield _stranger("another host in the line", absolute, statuses=(200, 400, 421), lacks=evil)


def _protocols() -> Iterator[Hostile]:
    upgrade = ("Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA")
    for path in ("/v1/realtime", "/v1/completions", "/health", "/admin/weights", "/"):
        data = request("GET", path, "Upgrade: websocket", *upgrade, closes=False)
        yield _stranger(f"a websocket to {path}", data, lacks="101 Switching", keeps_open=True)
        h2c = request(
            "GET",
            path,
            "Upgrade: h2c",
            "Connection: Upgrade, HTTP2-Settings",
            "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
            closes=False,
        )
        yield _stranger(f"h2c to {path}", h2c, lacks="101 Switching", keeps_open=True)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) * 100
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(508)
    for name, data in (
        ("HTTP/2", preface),
        ("TLS", hello),
        ("zeros", bytes(65_536)),
        ("SSH", b"SSH-2.0-x\r\n"),
        ("HTTP/0.9", b"GET /health\r\n\r\n"),
        ("a bare line", b"GET / HTTP/9.9\r\n\r\n"),
    ):
        yield _stranger(f"speaks {name}", data, answers=None, keeps_open=True)


def _open_routes() -> Iterator[Hostile]:
    for path, method in itertools.product(_OPEN, _METHODS):
        yield _stranger(f"{method} {path}", request(method, path))
    ranges = (
        "bytes=0-," + "0-," * 2600,
        "bytes=" + ",".join(f"{at}-{at}" for at in range(1000)),
        "bytes=-1",
        "bytes=9999999999-",
        "bytes=5-1",
        "lines=1",
        "bytes=" + "9" * 7000,
    )
    files = ("/console/main.js", "/console", "/static/swagger-ui-bundle.js", "/openapi.json")
    for path, value in itertools.product(files, ranges):
        data = request("GET", path, f"Range: {value}", "If-Range: x")
        yield _stranger(f"{path} in ranges {value[:16]}+{len(value)}", data)
    for path in (
        "/console/%2e%2e/routes.py",
        "/console/..%2f..%2fplugin.py",
        "/static/..%2f..%2fetc/passwd",
        "/console/report/fit/../../../etc/passwd",
        "/console/%00",
        "/console/" + "a" * 4000,
        "/static/" + "../" * 2000 + "etc/passwd",
    ):
        yield _stranger(f"the file {path[:40]}+{len(path)}", request("GET", path), lacks="root:")


def _framings() -> Iterator[Hostile]:
    """Requests that two programs may cut in two ways, with a second one inside."""
    inner = request("GET", "/ready")
    chunked = b"0\r\n\r\n" + inner
    for name, lines, rest in (
        (
            "both lengths",
            [f"Content-Length: {len(chunked)}", "Transfer-Encoding: chunked"],
            chunked,
        ),
        ("both lengths, turned", ["Transfer-Encoding: chunked", "Content-Length: 4"], chunked),
        (
            "two lengths",
            ["Content-Length: 5", f"Content-Length: {5 + len(inner)}"],
            b"hello" + inner,
        ),
        ("a list of lengths", [f"Content-Length: 5, {5 + len(inner)}"], b"hello" + inner),
        ("a signed length", ["Content-Length: +5"], b"hello" + inner),
        ("a hexadecimal length", ["Content-Length: 0x5"], b"hello" + inner),
        ("a length of 30 digits", ["Content-Length: " + "9" * 30], inner),
        ("a negative length", ["Content-Length: -1"], inner),
        ("an odd encoding", ["Transfer-Encoding: xchunked"], chunked),
        ("two encodings", ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], chunked),
        ("an encoding after a blank", ["Transfer-Encoding : chunked"], chunked),
        ("a folded encoding", ["Transfer-Encoding:\r\n chunked"], chunked),
        ("an encoding after a tab", ["Transfer-Encoding:\x0bchunked"], chunked),
        ("chunks of no number", ["Transfer-Encoding: chunked"], b"zz\r\n" + inner),
        ("chunks of minus one", ["Transfer-Encoding: chunked"], b"-1\r\n" + inner),
        ("chunks of 17 digits", ["Transfer-Encoding: chunked"], b"f" * 17 + b"\r\n" + inner),
        ("chunks without CR", ["Transfer-Encoding: chunked"], b"0\n\n" + inner),
        ("bare LF", [], b""),
    ):
        for path in ("/health", "/v1/completions", "/admin/default"):
            data = request("POST", path, *lines) + rest
            if name == "bare LF":
                data = data.replace(b"\r\n", b"\n")
            yield _stranger(f"{name} to {path}", data, answers=1, keeps_open=True)


def _bodies() -> Iterator[Hostile]:
    big = bytes(4 * _MIB)
    for path in ("/health", "/ready", "/metrics", "/v1/completions", "/admin/weights/apply", "/x"):
        yield _stranger(f"4 MiB to {path}", request("POST", path, body=big), answers=None)
        yield _stranger(
            f"1 GiB announced to {path}",
            request("POST", path, f"Content-Length: {2**30}"),
            keeps_open=True,
        )
        expects = request("POST", path, "Expect: 100-continue", "Content-Length: 5")
        yield _stranger(
            f"Expect: 100-continue to {path}", expects, keeps_open=True, lacks="100 Continue"
        )
        chunks = request("POST", path, "Transfer-Encoding: chunked") + b"1\r\na\r\n" * 100_000
        yield _stranger(f"100,000 chunks to {path}", chunks, answers=None, keeps_open=True)
        extended = request("POST", path, "Transfer-Encoding: chunked") + b"1;" + b"a" * _MIB
        yield _stranger(
            f"a chunk's extension of 1 MiB to {path}", extended, answers=None, keeps_open=True
        )
        trailers = b"0\r\n" + b"a: b\r\n" * 100_000 + b"\r\n"
        data = request("POST", path, "Transfer-Encoding: chunked") + trailers
        yield _stranger(f"600 KB of trailers to {path}", data, answers=None, keeps_open=True)
    pipeline = request("GET", "/health", closes=False) * 1000
    yield _stranger("1,000 requests at once", pipeline, answers=None, keeps_open=True)
