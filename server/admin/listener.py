"""`--admin-port`: the admin routes on a loopback port of their own, apart from inference."""

from __future__ import annotations

import contextlib
import importlib.metadata
import socket
from collections.abc import Generator

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException

from prefmix.server.admin import policy_routes, routes
from prefmix.server.auth.access_levels import check_levels
from prefmix.server.auth.hosts import AllowedHosts, HostMiddleware
from prefmix.server.auth.middleware import AccessMiddleware
from prefmix.server.auth.tokens import Tokens
from prefmix.server.http.errors import http_exception
from prefmix.server.http.openapi import describe_refusals
from prefmix.server.traffic.connections import KEEP_ALIVE_S
from prefmix.server.traffic.http_server import limit_connections
from prefmix.server.traffic.middleware import BodyLimitMiddleware

HOST = "127.0.0.1"

MAX_BODY_BYTES = 4 * 2**20
"""Largest request body; a store's document with thousands of profiles fits."""


def admin_app(state: routes.AdminState) -> FastAPI:
    """An application with the admin routes and their description, and nothing else."""
    app = FastAPI(
        title="prefmix admin",
        version=importlib.metadata.version("prefmix"),
        # FastAPI's pages load scripts from another host, and people would type the token there.
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(routes.router)
    app.include_router(policy_routes.router)
    describe_refusals(app)
    app.add_exception_handler(HTTPException, http_exception)
    setattr(app.state, routes.ADMIN_KEY, state)
    check_levels(app.router.routes, admin_route=routes.AdminRoute)
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=MAX_BODY_BYTES)
    app.add_middleware(AccessMiddleware, keys=Tokens([]), admin=state.tokens)
    return app


def listen(port: int) -> socket.socket:
    """Binds the admin port. All API processes share it, as each can change the weights of all.

    Raises: OSError if another program has the port.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((HOST, port))
    return listener


async def serve_admin(app: FastAPI, listener: socket.socket, hosts: AllowedHosts) -> None:
    """Serves the admin routes until cancelled, then closes the socket.

    Args: hosts: the names under which they may be asked.
    """
    with listener:
        config = uvicorn.Config(
            HostMiddleware(app, allowed=hosts),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        limit_connections(config)
        await _Server(config).serve(sockets=[listener])


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves the signals to the main server."""
        yield
