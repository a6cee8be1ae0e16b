"""vLLM's log of what clients send: warnings are cut, and a client's error has no traceback.

Both could fill a disk: the log repeats at any length what a chat template refuses, and vLLM writes
a traceback for every stream that it refuses after its beginning. Nor may a client's text order a
terminal about.
"""

from __future__ import annotations

import logging
import re

from prefmix.server.http.errors import sendable

_ROUTES = "vllm.entrypoints.openai."
"""Loggers of the routes. Those of the error handlers write a traceback if `--log-error-stack` asks
for it."""

_CONTROLS = re.compile(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]")


class ClientErrors(logging.Filter):
    """A filter for the handlers of vLLM's log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Drops a client's error, which the client has been told; cuts a warning."""
        from vllm.exceptions import VLLMClientError

        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, VLLMClientError) and record.name.startswith(_ROUTES):
            return False
        if record.levelno >= logging.WARNING:
            text = sendable(record.getMessage())
            record.msg = _CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)
            record.args = None
        return True


def set_up() -> None:
    """Adds the filter to the handlers that vLLM's log has now."""
    for handler in logging.getLogger("vllm").handlers:
        handler.addFilter(ClientErrors())
