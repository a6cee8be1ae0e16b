"""Limits of a request's head, like those of the proxies that stand before servers.

They hold before anyone is asked for a key: a head is parsed and kept before it can name one.
"""

from __future__ import annotations

from http import HTTPStatus

MAX_HEAD_BYTES = 32 * 2**10
"""Bytes of a request line and its fields; also those of a chunked body between two pieces of its
content (extensions of chunks, trailers)."""

MAX_FIELD_BYTES = 8 * 2**10
"""Bytes of one field, its name and value, and of the request's target."""

MAX_FIELDS = 100
"""Fields of a head and of the trailers behind its body, together."""


class HeadError(ValueError):
    """A head, or the framing of a body, that is not read to its end. One sentence."""

    def __init__(
        self, message: str, status: HTTPStatus = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    ) -> None:
        super().__init__(message)
        self.status = status


class HeadLimit:
    """Counts what one request sends beside its content. Every method raises HeadError beyond it."""

    def __init__(self) -> None:
        self._num_fields = 0
        self._num_target_bytes = 0
        self._num_bytes = 0

    def target(self, num_bytes: int) -> None:
        """Notes a further part of the request's target."""
        self._num_target_bytes += num_bytes
        if self._num_target_bytes > MAX_FIELD_BYTES:
            raise HeadError(
                f"the request's target has more than {MAX_FIELD_BYTES} bytes; send data in a body",
                HTTPStatus.REQUEST_URI_TOO_LONG,
            )

    def field(self, name: bytes, value: bytes) -> None:
        """Notes a field."""
        self._num_fields += 1
        if self._num_fields > MAX_FIELDS:
            raise HeadError(f"the request has more than {MAX_FIELDS} header fields; send fewer")
        if len(name) + len(value) > MAX_FIELD_BYTES:
            shown = name[:40].decode("latin-1")
            raise HeadError(
                f"the request's header field {shown!r} has {len(name) + len(value)} bytes; this "
                f"server takes {MAX_FIELD_BYTES}"
            )

    def content(self) -> None:
        """Notes a piece of the body's content."""
        self._num_bytes = 0

    def received(self, num_bytes: int) -> None:
        """Notes bytes in which no content and no end of the request came."""
        self._num_bytes += num_bytes
        if self._num_bytes > MAX_HEAD_BYTES:
            raise HeadError(
                f"the request has more than {MAX_HEAD_BYTES} bytes of header fields, or beside "
                "its body's content; send fewer"
            )
