"""Requests without a valid key or token: counted, and said in the log now and then.

No address is locked out: behind a proxy that would lock out everyone.
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
"""One line in so many seconds, however many try."""


class FailedLogins:
    """Those of one surface, in this process."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._counter = AUTH_FAILURES.labels(surface)
        self._unsaid = 0
        self._last_line = -_INTERVAL_S

    def note(self, scope: Scope) -> None:
        """Counts one and, if the last line is long enough ago, writes one."""
        self._counter.inc()
        self._unsaid += 1
        now = time.monotonic()
        if now - self._last_line < _INTERVAL_S:
            return
        client = scope.get("client")
        audit_log.login_failed(self._surface, client[0] if client else "unknown", self._unsaid)
        self._last_line, self._unsaid = now, 0


def set_up() -> None:
    """Shows both counters from the start, at 0."""
    _of("key")
    _of("admin")


def note(surface: Surface, scope: Scope) -> None:
    """A request that was refused for want of a valid key or token."""
    _of(surface).note(scope)


@cache
def _of(surface: Surface) -> FailedLogins:
    return FailedLogins(surface)
