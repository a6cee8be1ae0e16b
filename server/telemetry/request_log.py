"""The request log: one line on stderr for each request for text, without its text.

It is off unless asked for.
"""

from __future__ import annotations

import logging
from typing import Any, Literal, get_args

from prefmix.server.telemetry.audit_log import one_word
from prefmix.server.telemetry.stderr_logger import JsonLines, to_stderr

RequestLog = Literal["off", "text", "json"]
FORMATS: tuple[str, ...] = get_args(RequestLog)

_LOGGER = logging.getLogger("prefmix.requests")
_LOGGER.propagate = False


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = record.__dict__["fields"]
        pairs = " ".join(
            f"{name}={one_word(str(value))}" for name, value in fields.items() if value is not None
        )
        return f"{self.formatTime(record)} prefmix request: {pairs}"


def set_up(chosen: RequestLog) -> None:
    """Starts the log in the chosen format."""
    to_stderr(_LOGGER, JsonLines() if chosen == "json" else _Text())
    if chosen == "off":
        _LOGGER.setLevel(logging.CRITICAL + 1)


def is_on() -> bool:
    """True if lines are written."""
    return bool(_LOGGER.handlers) and _LOGGER.isEnabledFor(logging.INFO)


def write(**fields: Any) -> None:
    """Writes one request's line; seconds are rounded to microseconds."""
    if is_on():
        for name, value in fields.items():
            if isinstance(value, float):
                fields[name] = round(value, 6)
        _LOGGER.info("request", extra={"fields": fields})
