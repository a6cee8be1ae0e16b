"""A hostile request as bytes, with what the server may answer."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from resilience.harness.asked_server import KEY, TOKEN

DOCUMENTED_5XX = frozenset({503, 504})
"""Busy or ending, and out of time: what the server may always answer beside 2xx, 3xx and 4xx."""

_SHOWN = 160


@dataclass(frozen=True, kw_only=True, slots=True)
class Hostile:
    """One request on a connection of its own."""

    name: str
    """Unique, and the same in every run: `--only NAME` sends it again."""
    data: bytes
    is_open: bool = False
    """True without a key: what strangers can send, who may cost far less."""
    statuses: Collection[int] = ()
    """The statuses that it may get; empty: any but the 5xx that are not documented."""
    says: str = ""
    """A text that the answer has."""
    lacks: str = ""
    """A text that the answer must not have."""
    answers: int | None = 1
    """Most answers that may come back on the connection; None: any number, or none at all."""
    keeps_open: bool = False
    """True if the server may wait for more, so that the client has to hang up."""

    @property
    def shown(self) -> str:
        """The request, shortened."""
        head, _, body = self.data.partition(b"\r\n\r\n")
        parts = []
        for part in (head, body):
            text = repr(part[:_SHOWN])[1:]
            parts.append(text if len(part) <= _SHOWN else f"{text}... ({len(part)} bytes)")
        return " + ".join(parts)


def request(
    method: str,
    path: str | bytes,
    *lines: str | bytes,
    body: bytes | None = None,
    token: str = "",
    host: str | None = "127.0.0.1",
    version: str = "HTTP/1.1",
    closes: bool = True,
) -> bytes:
    """The bytes of a request.

    Args:
      lines: further fields of the head, whole.
      body: sent with Content-Length; None without.
      token: sent as a bearer token, unless it is empty.
      closes: asks the server to close the connection after the answer.
    """
    head = [b" ".join(map(_bytes, (method, path, version)))]
    if host is not None:
        head.append(b"Host: " + _bytes(host))
    if token:
        head.append(b"Authorization: Bearer " + _bytes(token))
    if closes:
        head.append(b"Connection: close")
    head += map(_bytes, lines)
    if body is not None:
        head += [b"Content-Length: %d" % len(body)]
        if not any(line.lower().startswith(b"content-type") for line in head):
            head += [b"Content-Type: application/json"]
    return b"\r\n".join(head) + b"\r\n\r\n" + (body or b"")


def with_key(name: str, path: str, body: Any, *lines: str, **expected: Any) -> Hostile:
    """A POST with the key of the path. Args: body: bytes as they are, else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return admin("POST", name, path, content, *lines, **expected)


def admin(method: str, name: str, path: str, body: bytes, *lines: str, **expected: Any) -> Hostile:
    """A request with the key or token of the path."""
    token = TOKEN if path.startswith("/admin") else KEY
    data = request(method, path, *lines, body=body, token=token)
    return Hostile(name=f"{path}: {name}", data=data, **expected)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")
