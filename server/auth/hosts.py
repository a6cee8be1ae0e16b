"""The check of a request's Host field: the server answers only under names that are its own.

A page of another site can point its own name at this server's address (DNS rebinding) and then read
what the server answers to its visitor's browser. Such a request names the other site as its host.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from http import HTTPStatus
from urllib.parse import urlsplit, urlunsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefmix.mixing.shown_value import shown
from prefmix.server.http.errors import error_response
from prefmix.server.telemetry.load_metrics import count_refused

LOOPBACK = ("localhost", ".localhost")
"""Names that mean this machine, wherever they are looked up."""

PRIVATE = (".local", ".internal", ".svc", ".home.arpa")
"""Names that no public registry gives away: those of a local network or a cluster."""

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{0,5})?")


class AllowedHosts:
    """The names under which a server may be asked."""

    def __init__(self, names: Iterable[str], *, bound: str | None) -> None:
        """Args:
        names: further names; `.example.org` stands for all names below it, `*` for any.
        bound: the address that the server listens on; None for a Unix socket, which browsers
            cannot reach, so that any name is allowed.
        """
        names = {name.lower() for name in names}
        self._allows_any = "*" in names or (bound is None and not names)
        self._is_public = bound is not None and not is_loopback(bound)
        names |= {*LOOPBACK, (bound or "localhost").lower()}
        if self._is_public:
            names |= {*PRIVATE, socket.gethostname().lower()}
        self._names = frozenset(name for name in names if not name.startswith("."))
        self._suffixes = tuple(name for name in names if name.startswith("."))

    def allows(self, host: str) -> bool:
        """True for a Host field that names this server. Raises: ValueError if it names nothing."""
        match = _HOST.fullmatch(host)
        if match is None:
            raise ValueError
        name = match["name"].lower().removesuffix(".")
        # Whoever asks for an address means the machine that has it.
        if self._allows_any or name in self._names or _is_address(name.strip("[]")):
            return True
        # No public name is without a dot, and containers call each other by such names.
        return name.endswith(self._suffixes) or (self._is_public and "." not in name)


class HostMiddleware:
    """ASGI middleware: 400 without exactly one Host field, 421 for one that is not allowed."""

    def __init__(self, app: ASGIApp, *, allowed: AllowedHosts) -> None:
        self.app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        refusal = self._refusal(hosts, scope.get("http_version", "1.1"))
        if refusal is None:
            await self.app(scope, receive, _with_relative_redirects(send))
            return
        status, message = refusal
        count_refused("unknown_host")
        await error_response(message, status=status)(scope, receive, send)

    def _refusal(self, hosts: list[str], version: str) -> tuple[HTTPStatus, str] | None:
        if not hosts and version == "1.0":  # old probes; browsers always name a host
            return None
        if len(hosts) != 1:
            return HTTPStatus.BAD_REQUEST, (
                f"the request has {len(hosts) or 'no'} Host fields; send exactly one"
            )
        try:
            if self._allowed.allows(hosts[0]):
                return None
        except ValueError:
            return HTTPStatus.BAD_REQUEST, (
                f"the Host field is {shown(hosts[0])}; expected a name or an address, and a "
                "port after a colon if it is not the default"
            )
        return HTTPStatus.MISDIRECTED_REQUEST, (
            f"this server does not answer to the host {shown(hosts[0])}; ask it by its "
            "address, or let its operator allow the name (--allowed-host)"
        )


def is_loopback(host: str) -> bool:
    """True for an address, or a name, that only this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_relative_redirects(send: Send) -> Send:
    """A `send` that cuts scheme and host off a redirect.

    Starlette takes them from the request, but a proxy may be reached under others.
    """

    async def send_relative(message: Message) -> None:
        if message["type"] == "http.response.start" and 300 <= message["status"] < 400:
            headers = MutableHeaders(scope=message)
            if (target := headers.get("location")) is not None:
                parts = urlsplit(target)
                path = "/" + parts.path.lstrip("/")
                headers["location"] = urlunsplit(("", "", path, parts.query, parts.fragment))
        await send(message)

    return send_relative
