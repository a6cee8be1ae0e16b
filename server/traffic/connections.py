"""Limits of connections: their number, the time that a client may take, and what counts as idle.

uvicorn itself only limits the time between two requests. `http_protocol` applies these limits;
`request_body` limits the time for the body of a request that is served.
"""

from __future__ import annotations

import resource
from typing import Protocol

KEEP_ALIVE_S = 75
"""Seconds a connection may idle between two requests, the same for all listeners.

Longer than the 60 s of common proxies and load balancers: the side that reuses connections must
close them, or a request is lost."""

HEAD_TIMEOUT_S = 10.0
"""Seconds from the first byte of a request to the last byte of its head."""

STALL_TIMEOUT_S = 60.0
"""Seconds a client may leave its answer unread, once 64 KiB of it wait to be sent, or once the
server has ended the connection."""

SPARE_CONNECTIONS = 1024
"""Connections beyond two for each answer that the server takes on at once."""

_OTHER_FILES = 256
"""File descriptors that are left for everything but clients' connections."""


class Closable(Protocol):
    """A connection that can be ended from outside."""

    def end(self) -> None:
        """Closes the connection; breaks it off if its client has not read what came before."""


class OpenConnections:
    """The connections of one listener, at most `most` of them.

    Beyond that, one that only waits for its client makes room, the one that has waited longest: its
    last answer is complete, the head of its first request is not, or its answer is not read. So a
    client that opens many and sends nothing, a byte at a time, or reads nothing, keeps nobody out.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Closable] = set()
        self._waiting: dict[Closable, None] = {}  # the first has waited longest

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Closable) -> bool:
        """Adds a new connection, which waits; returns False if there is no room for it."""
        if len(self._open) >= self._most:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                return False
            self.remove(oldest)
            oldest.end()
        self._open.add(connection)
        self._waiting[connection] = None
        return True

    def works(self, connection: Closable) -> None:
        """Notes that a connection's request is being answered."""
        self._waiting.pop(connection, None)

    def waits(self, connection: Closable) -> None:
        """Notes that a connection waits for its client."""
        if connection in self._open:
            self._waiting[connection] = None

    def remove(self, connection: Closable) -> None:
        """Removes a connection that has ended."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)


def default_max_connections(max_answers: int) -> int:
    """The default number of connections of an API process; its file descriptors limit it as well.

    Args:
      max_answers: the answers that the server takes on at once.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * max_answers + SPARE_CONNECTIONS
    return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, files - _OTHER_FILES))
