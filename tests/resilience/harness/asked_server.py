"""A server that is asked over HTTP, a connection a request."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
from typing import Any, NamedTuple

from support.server_process import ServerProcess

TOKEN = "admin-token-of-the-resilience-suite"
KEY = "inference-key-of-the-resilience-suite"


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: Any
    """Parsed JSON, or the text where it is none."""


class AskedServer:
    """Asks a server of the harness, whose `start` makes `server`."""

    patience_s = 60.0
    """The time for an answer."""
    server: ServerProcess

    def stop(self) -> int:
        """Ends the server by one SIGTERM; returns the exit code."""
        return self.server.end(signal.SIGTERM)

    @property
    def url(self) -> str:
        """The server's address."""
        return self.server.url

    def ask(
        self, method: str, path: str, body: Any = None, *, token: str = KEY, **headers: str
    ) -> Answer:
        """One request on a connection of its own, so any API process may get it.

        Raises: OSError, http.client.HTTPException.
        """
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.server.port, timeout=self.patience_s
        )
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {token}", **headers}
            content = None
            if body is not None:
                content = json.dumps(body)
                headers["Content-Type"] = "application/json"
            connection.request(method, path, body=content, headers=headers)
            response = connection.getresponse()
            text = response.read().decode()
            lower = {name.lower(): value for name, value in response.getheaders()}
        is_json = lower.get("content-type", "").startswith("application/json")
        return Answer(response.status, lower, json.loads(text) if is_json else text)

    def admin(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request to an admin route."""
        return self.ask(method, f"/admin{path}", body, token=TOKEN, **headers)
