"""uvicorn's HTTP protocol with limits: heads, pipelines, connections, and the client's time.

uvicorn keeps a head however long it is, parses all of a pipeline at once, takes trailers for header
fields, and lets a client take any time for its head or for reading its answer.
"""

from __future__ import annotations

import json
from asyncio import Transport
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from prefmix.server.http.errors import error_body
from prefmix.server.telemetry.load_metrics import count_refused
from prefmix.server.traffic import connections
from prefmix.server.traffic.connections import OpenConnections
from prefmix.server.traffic.request_head import HeadError, HeadLimit
from prefmix.server.traffic.timers import Timers

PIECE_BYTES = 2**11
"""Bytes that are parsed at once. No request of a pipeline behind them is parsed before all of
theirs have their turn."""

TURN_BYTES = 2**15
"""Bytes of one connection that are parsed before others have their turn."""

MAX_REST_BYTES = 2**20
"""Bytes of a body that are parsed, to use the connection again, after its request was answered."""

_MALFORMED = (
    "Invalid HTTP request received: it is not HTTP/1.1, or its body is not framed as its head "
    "announces"
)

_FRAMING = (b"content-length", b"transfer-encoding")

LINGER_S = 2.0
"""Seconds for a refused client to read the refusal while it still sends."""


class _Flow(FlowControl):
    """uvicorn's flow control, which does not read on while bytes wait to be parsed."""

    has_unparsed = False

    def resume_reading(self) -> None:
        if not self.has_unparsed:
            super().resume_reading()


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    flow: _Flow
    _cycles: Sequence[RequestResponseCycle] = ()
    _is_in_message = False
    _is_in_head = False
    _is_deaf = False
    """True once nothing more of what the client sends is parsed."""
    _has_advanced = False
    _is_replaying = False
    """True while a new parser is told the framing of a body whose head another one has parsed."""
    _num_rest_bytes = 0

    def __init__(self, *args: Any, open_connections: OpenConnections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open = open_connections
        self._limit = HeadLimit()
        self._timers = Timers(self.loop)
        self._unparsed = memoryview(b"")

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        if self._open.add(self):
            self._start_keep_alive()  # some clients open connections before they need them
            return
        count_refused("too_many_connections")
        message = "this server has as many connections as it takes; try again later"
        self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.remove(self)
        self._timers.stop("head", "stall")
        self._unset_keepalive_if_required()
        self._disconnect_requests()
        super().connection_lost(exc)
        self._is_deaf = True

    def eof_received(self) -> None:
        self._disconnect_requests()  # the transport closes itself now
        super().eof_received()

    def end(self) -> None:
        """Closes the connection; breaks it off if its client has not read what came before."""
        self._disconnect_requests()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    # What the client sends

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        was_in_message = self._is_in_message
        self._unparsed = memoryview(bytes(self._unparsed) + data if self._unparsed else data)
        self._parse()
        is_between = self.cycle is None or self.cycle.response_complete
        has_ended = was_in_message and not self._is_in_message
        if is_between and not has_ended and not self.transport.is_closing():
            # Not restarted by every byte: a client that sends one byte at a time must end, too.
            self._timers.start("head", connections.HEAD_TIMEOUT_S, self.end)

    def _parse(self) -> None:
        """Parses what has come, for a turn, or until requests of a pipeline wait for theirs."""
        rest = self._unparsed
        end_of_turn = len(rest) - TURN_BYTES
        while rest and len(rest) > end_of_turn and not self.pipeline and not self._is_deaf:
            piece, rest = rest[:PIECE_BYTES], rest[PIECE_BYTES:]
            try:
                self._parse_piece(piece)
            except HeadError as error:
                self._refuse_head(error)
            except httptools.HttpParserError as error:
                cause = error.__context__  # raised in one of the parser's callbacks
                known = cause if isinstance(cause, HeadError) else None
                self._refuse_head(known or HeadError(_MALFORMED, HTTPStatus.BAD_REQUEST))
        self._unparsed = memoryview(b"") if self._is_deaf else rest
        self.flow.has_unparsed = bool(self._unparsed)
        if self._unparsed:
            self.flow.pause_reading()
            if not self.pipeline:
                self.loop.call_soon(self._parse_on)

    def _parse_on(self) -> None:
        """Parses what is left, and reads on if nothing is and the body does not wait."""
        if self._is_deaf or not self._unparsed:
            return
        self._parse()
        cycle = self.cycle
        is_wanted = cycle is None or cycle.response_complete or len(cycle.body) <= HIGH_WATER_LIMIT
        if not self._unparsed and is_wanted:
            self.flow.resume_reading()

    def _parse_piece(self, piece: memoryview) -> None:
        self._has_advanced = False
        rest = piece
        while rest:
            try:
                self.parser.feed_data(rest)
                break
            except httptools.HttpParserUpgrade as end_of_head:
                rest = rest[end_of_head.args[0] :]
                self._ignore_upgrade()
        if self._has_advanced:
            self._limit.content()
        elif self._is_in_message:
            self._limit.received(len(piece))
        if self._is_in_message and self.cycle is not None and self.cycle.response_complete:
            self._num_rest_bytes += len(piece)
            if self._num_rest_bytes > MAX_REST_BYTES:
                self._linger(connections.HEAD_TIMEOUT_S)

    def _should_upgrade(self) -> bool:
        return False

    def _ignore_upgrade(self) -> None:
        """Goes on in HTTP/1.1 after a head that asked for another protocol.

        A server may ignore the field Upgrade (RFC 9110, section 7.8), and no other protocol is
        spoken here. But the parser takes the body for something of the other protocol, and ends. So
        a new one gets the same framing without the Upgrade, and judges it by the same rules.
        """
        framing = [name + b": " + value for name, value in self.headers if name in _FRAMING]
        line = f"{self.scope['method']} / HTTP/{self.scope['http_version']}".encode()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._is_replaying = True
        self.parser.feed_data(b"\r\n".join([line, *framing, b"", b""]))

    # The parser's callbacks

    def on_message_begin(self) -> None:
        if self._is_replaying:
            return
        self._is_in_message = self._is_in_head = True
        self._limit = HeadLimit()
        self._num_rest_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._is_replaying:
            return
        self._limit.target(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_replaying:
            return
        self._limit.field(name, value)
        if self._is_in_head:  # else a trailer, which must not pass for a field that was checked
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_replaying:
            self._is_replaying = False
            return
        if self.parser.get_method() == b"CONNECT":
            message = "CONNECT asks for a tunnel; this server is no proxy"
            raise HeadError(message, HTTPStatus.BAD_REQUEST)
        self._is_in_head = False
        self._timers.stop("head")
        super().on_headers_complete()
        self._open.works(self)
        if self.cycle is not None and self.cycle not in self._cycles:
            self._cycles = [*self._unanswered(), self.cycle]

    def on_body(self, body: bytes) -> None:
        self._has_advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # only its head is complete
        self._is_in_message = False
        self._has_advanced = True
        super().on_message_complete()
        if self.cycle.response_complete:  # the rest of a refused body has come
            self._timers.stop("head")
            self._start_keep_alive()

    # Answers

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._unanswered():
            self._open.waits(self)
        if self.transport.is_closing():
            self._start_stall_timer()
            return
        self._parse_on()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_stall_timer()
        self._open.waits(self)

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self._timers.stop("stall")
            if self._unanswered():
                self._open.works(self)
        super().resume_writing()

    def _refuse_head(self, error: HeadError) -> None:
        if error.status != HTTPStatus.BAD_REQUEST:
            count_refused("head_too_large")
        self._refuse(error.status, str(error))

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answers a request that was not read to its end, and ends the connection."""
        before = self._unanswered()
        is_alone = not before or (before == [self.cycle] and self._is_in_body())
        self._disconnect_requests()
        # An answer of ours would be taken for that of an earlier request, or for a part of it.
        if is_alone and not (before and before[0].response_started):
            body = json.dumps(error_body(message, status=status)).encode()
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                head += "retry-after: 1\r\n"
            self.transport.write(
                STATUS_LINE[status] + head.encode() + b"connection: close\r\n\r\n" + body
            )
        self._linger(LINGER_S)

    def _linger(self, seconds: float) -> None:
        """Ends the connection once its client does, or after a time; until then it is not heard.

        A connection that is closed while its client still sends is reset, and the client may lose
        the answer.
        """
        self._is_deaf = True
        self._open.remove(self)
        self._unset_keepalive_if_required()
        self._timers.stop("head")
        self.flow.has_unparsed = False
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timers.start("head", seconds, self.transport.abort)

    def _is_in_body(self) -> bool:
        return self._is_in_message and not self._is_in_head  # else `cycle` is an earlier request's

    def _unanswered(self) -> list[RequestResponseCycle]:
        return [cycle for cycle in self._cycles if not cycle.response_complete]

    def _disconnect_requests(self) -> None:
        # uvicorn tells only the last request of a pipeline; an earlier one would go on, and fail to
        # write its answer.
        for cycle in self._unanswered():
            cycle.disconnected = True
            cycle.message_event.set()

    # Timers

    def timeout_keep_alive_handler(self) -> None:
        if not self.transport.is_closing():
            self.end()

    def _start_keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _start_stall_timer(self) -> None:
        self._timers.start("stall", connections.STALL_TIMEOUT_S, self.transport.abort)
