"""Timeouts of connections: idle ones, unfinished request heads, and unread responses.

uvicorn itself only limits the time between two requests. A client that does not finish its
request's head, or the rest of a refused body, would hold a connection for ever; a client that does
not read its answer would hold the answer's memory as well. Both are disconnected here.
`request_body` limits the time for the body of a request that is served.
"""

from __future__ import annotations

from asyncio import Transport
from asyncio.events import TimerHandle
from collections.abc import Sequence
from typing import Any

KEEP_ALIVE_S = 75
"""Seconds a connection may idle between two requests, the same for all listeners.

Longer than the 60 s of common proxies and load balancers: the side that reuses connections must
close them, or a request is lost."""

HEAD_TIMEOUT_S = 10.0
"""Seconds from the first byte of a request to the last byte of its head."""

STALL_TIMEOUT_S = 60.0
"""Seconds a client may leave its answer unread, once 64 KiB of it wait to be sent."""


def set_timeouts(config: Any) -> None:
    """Sets the timeouts of a server's later connections. Args: config: uvicorn.Config."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

    class TimeoutProtocol(HttpToolsProtocol):
        """uvicorn's protocol with two timers."""

        _head_timer: TimerHandle | None = None
        _stall_timer: TimerHandle | None = None
        _cycles: Sequence[RequestResponseCycle] = ()
        _is_in_message = False

        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start_keep_alive()  # some clients open connections before they need them

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_head_timer()
            self._stop_stall_timer()
            self._disconnect_requests()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            was_in_message = self._is_in_message
            super().data_received(data)
            is_between = self.cycle is None or self.cycle.response_complete
            has_ended = was_in_message and not self._is_in_message
            if is_between and not has_ended and not self.transport.is_closing():
                self._start_head_timer()

        def on_message_begin(self) -> None:
            self._is_in_message = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._stop_head_timer()
            super().on_headers_complete()
            if self.cycle is not None and self.cycle not in self._cycles:
                unfinished = [cycle for cycle in self._cycles if not cycle.response_complete]
                self._cycles = [*unfinished, self.cycle]

        def on_message_complete(self) -> None:
            self._is_in_message = False
            super().on_message_complete()
            if self.cycle.response_complete:  # the rest of a refused body has come
                self._stop_head_timer()
                self._start_keep_alive()

        def send_400_response(self, msg: str) -> None:
            self._disconnect_requests()
            super().send_400_response(msg)

        def eof_received(self) -> None:
            self._disconnect_requests()  # the transport closes itself now
            super().eof_received()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._stall_timer is None:
                self._stall_timer = self.loop.call_later(STALL_TIMEOUT_S, self.transport.abort)

        def resume_writing(self) -> None:
            self._stop_stall_timer()
            super().resume_writing()

        def _disconnect_requests(self) -> None:
            # uvicorn tells only the last request of a pipeline; an earlier one would go on, and
            # fail to write its answer.
            for cycle in self._cycles:
                if not cycle.response_complete:
                    cycle.disconnected = True
                    cycle.message_event.set()

        def _start_keep_alive(self) -> None:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

        def _stop_stall_timer(self) -> None:
            if self._stall_timer is not None:
                self._stall_timer.cancel()
                self._stall_timer = None

        def _stop_head_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _start_head_timer(self) -> None:
            # Not restarted by every byte: a client that sends one byte at a time must end, too.
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    if config.http_protocol_class is HttpToolsProtocol:
        config.http_protocol_class = TimeoutProtocol
