"""A thread that asks the server until it answers, and checks that prefmix's routes answer.

The check is a real request for /v1/mixture. It fails if vLLM came up without our routes, for
whatever reason, and it is the same for one API process and for several. A mixture that answers
before this server's own processes have come up is another server's, at the same address.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass

_INTERVAL_S = 0.05
_ANSWER_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """The address at which a server listens."""

    host: str
    port: int
    tls: bool = False
    unix_socket: str | None = None

    @property
    def url(self) -> str:
        """The base URL as a client on this machine writes it."""
        if self.unix_socket is not None:
            return f"unix:{self.unix_socket}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def reachable_host(self) -> str:
        """The host to connect to: loopback for a server that listens on all addresses."""
        return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def local_url(self) -> str:
        """The base URL by which this machine reaches the server, over its socket if it has one."""
        if self.unix_socket is not None:
            return "http://localhost"
        return Address(host=self.reachable_host, port=self.port, tls=self.tls).url

    def connect(self) -> http.client.HTTPConnection:
        """A new connection, not open yet."""
        if self.unix_socket is not None:
            return _UnixConnection(self.unix_socket)
        if self.tls:
            # The probe asks only our own server, on a socket that this process has bound.
            context = ssl._create_unverified_context()
            return http.client.HTTPSConnection(
                self.reachable_host, self.port, timeout=_ANSWER_TIMEOUT_S, context=context
            )
        return http.client.HTTPConnection(self.reachable_host, self.port, timeout=_ANSWER_TIMEOUT_S)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ANSWER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class ProbeError(RuntimeError):
    """A server that answers, but not with prefmix's routes and profiles."""


class ReadyProbe:
    """Asks until the server answers, then calls `on_ready` or `on_failure` once."""

    def __init__(
        self,
        address: Address,
        *,
        sha256: str | None,
        key: str | None,
        on_ready: Callable[[], None],
        on_failure: Callable[[ProbeError], None],
        are_all_up: Callable[[], bool] = lambda: True,
    ) -> None:
        """Args:
        sha256: hash of the expected profiles; None if they may have changed by now.
        key: an API key, if the server wants one.
        on_ready, on_failure: called in the probe's thread.
        are_all_up: true once each API process of this very server has come up; one of several
          answers earlier.
        """
        self._address = address
        self._sha256 = sha256
        self._key = key
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._are_all_up = are_all_up
        self.answered = False
        """True once the server has answered correctly."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ReadyProbe:
        """Starts asking."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops asking."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            are_all_up = self._are_all_up()
            try:
                status, body = self._ask()
            except (OSError, http.client.HTTPException):
                continue
            is_full = status == http.HTTPStatus.SERVICE_UNAVAILABLE  # clients came first
            if is_full or (status == http.HTTPStatus.OK and not are_all_up):
                continue
            try:
                check_answer(status, body, sha256=self._sha256)
            except ProbeError as error:
                self._on_failure(error)
                return
            self.answered = True
            self._on_ready()
            return

    def _ask(self) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        with contextlib.closing(self._address.connect()) as connection:
            connection.request("GET", "/v1/mixture", headers=headers)
            response = connection.getresponse()
            return response.status, response.read()


def check_answer(status: int, body: bytes, *, sha256: str | None) -> None:
    """Checks an answer to GET /v1/mixture.

    Args:
      status: the HTTP status.
      body: the answer's bytes.
      sha256: hash of the expected profiles; None if they may have changed by now.
    Raises: ProbeError unless the answer shows the expected profiles.
    """
    if status != http.HTTPStatus.OK:
        raise ProbeError(
            f"the server came up without prefmix's routes: GET /v1/mixture answered {status}"
        )
    try:
        served = json.loads(body).get("sha256")
    except (ValueError, AttributeError):
        served = None
    if served is None or sha256 not in (None, served):
        raise ProbeError(
            f"the server came up with other profiles: sha256 {served}, expected {sha256}"
        )
