"""TrafficSetup on connections that do not get on: uvicorn has one only between two requests.

A client that does not finish the head of its request, or the rest of a body that has been refused,
holds a connection; one that does not read its answer holds what has been generated for it as well.
Both are cut off. (The body of a request that is served has a bound of its own.)
"""

from __future__ import annotations

from asyncio import Transport
from asyncio.events import TimerHandle
from collections.abc import Sequence
from typing import Any

HEAD_TIMEOUT_S = 10.0
"""From the first byte of a request to the last of its head."""

STALL_TIMEOUT_S = 60.0
"""How long a client may let its answer wait, once 64 KiB of it do."""


def bound(config: Any) -> None:
    """Has a uvicorn server bound its connections from now on. Args: config: uvicorn.Config."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

    class BoundedProtocol(HttpToolsProtocol):
        """uvicorn's protocol with two timers."""

        _head_timer: TimerHandle | None = None
        _stall_timer: TimerHandle | None = None
        _cycles: Sequence[RequestResponseCycle] = ()
        _is_in_message = False

        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._rest()  # who opens connections ahead is welcome

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_came()
            self._unstalled()
            self._nobody_reads()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            was_in_message = self._is_in_message
            super().data_received(data)
            is_between = self.cycle is None or self.cycle.response_complete
            has_ended = was_in_message and not self._is_in_message
            if is_between and not has_ended and not self.transport.is_closing():
                self._await_head()

        def on_message_begin(self) -> None:
            self._is_in_message = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._head_came()
            super().on_headers_complete()
            if self.cycle is not None and self.cycle not in self._cycles:
                unfinished = [cycle for cycle in self._cycles if not cycle.response_complete]
                self._cycles = [*unfinished, self.cycle]

        def on_message_complete(self) -> None:
            self._is_in_message = False
            super().on_message_complete()
            if self.cycle.response_complete:  # the rest of a refused body has come
                self._head_came()
                self._rest()

        def send_400_response(self, msg: str) -> None:
            self._nobody_reads()
            super().send_400_response(msg)

        def eof_received(self) -> None:
            self._nobody_reads()  # the transport closes itself now
            super().eof_received()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._stall_timer is None:
                self._stall_timer = self.loop.call_later(STALL_TIMEOUT_S, self.transport.abort)

        def resume_writing(self) -> None:
            self._unstalled()
            super().resume_writing()

        def _nobody_reads(self) -> None:
            # uvicorn tells the last request of a pipeline only; the one at work would go on, and
            # fail to write.
            for cycle in self._cycles:
                if not cycle.response_complete:
                    cycle.disconnected = True
                    cycle.message_event.set()

        def _rest(self) -> None:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

        def _unstalled(self) -> None:
            if self._stall_timer is not None:
                self._stall_timer.cancel()
                self._stall_timer = None

        def _head_came(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _await_head(self) -> None:
            # Not begun anew by every byte: a trickle has to end as well.
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    if config.http_protocol_class is HttpToolsProtocol:
        config.http_protocol_class = BoundedProtocol
