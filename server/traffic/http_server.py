"""Servers of uvicorn's whose connections have the limits of `http_protocol`."""

from __future__ import annotations

import functools
from typing import Any

from uvicorn.config import HTTP_PROTOCOLS, Config

from prefmix.server.traffic.connections import SPARE_CONNECTIONS, OpenConnections
from prefmix.server.traffic.http_protocol import LimitedProtocol


def limit_connections(config: Config, *, max_connections: int = SPARE_CONNECTIONS) -> None:
    """Gives a server the limits. Args: config: the server's configuration, loaded or not."""
    config.http = config.http_protocol_class = _protocol(max_connections)


def limit_all_connections(*, max_connections: int) -> None:
    """Gives the limits to every server that is configured from now on in this process.

    vLLM makes its server itself, and begins to accept connections at once.
    """
    HTTP_PROTOCOLS["auto"] = _protocol(max_connections)


def _protocol(max_connections: int) -> Any:
    return functools.partial(LimitedProtocol, open_connections=OpenConnections(max_connections))
