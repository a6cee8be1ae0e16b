"""Failed logins: requests without a valid key or token, counted and reported in the log.

No address is locked out, as behind a proxy that would lock out everyone.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

from starlette.types import Scope

from prefmix.server.telemetry import audit_log
from prefmix.server.telemetry.metrics import AUTH_FAILURES

Surface = Literal["key", "admin"]
_INTERVAL_S = 10.0
"""Seconds between two lines of log, however many logins fail."""


class FailedLogins:
    """The failed logins of one surface, API key or admin token, in this process."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._counter = AUTH_FAILURES.labels(surface)
        self._num_unreported = 0
        self._last_line = -_INTERVAL_S

    def note(self, scope: Scope) -> None:
        """Counts a failed login; writes a line if the last one is at least _INTERVAL_S old."""
        self._counter.inc()
        self._num_unreported += 1
        now = time.monotonic()
        if now - self._last_line < _INTERVAL_S:
            return
        client = scope.get("client")
        audit_log.login_failed(
            self._surface, client[0] if client else "unknown", self._num_unreported
        )
        self._last_line, self._num_unreported = now, 0


def set_up() -> None:
    """Creates both counters, so that the metrics show them from the start."""
    _of("key")
    _of("admin")


def note(surface: Surface, scope: Scope) -> None:
    """Notes a request that was refused because it has no valid key or token."""
    _of(surface).note(scope)


@cache
def _of(surface: Surface) -> FailedLogins:
    return FailedLogins(surface)
