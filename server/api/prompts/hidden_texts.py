"""Keeps the policies' system texts out of what a chat template says when it refuses messages."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

_LOGGER = "vllm.renderers.hf"
"""Logs a template's reason (vLLM 0.32)."""
_HIDDEN = "[a reason that shows a policy's system text]"


def shows(text: str, message: str) -> bool:
    """True if a message has a text in it, as it is or with escapes."""
    plain = text.strip()
    written = (plain, repr(plain)[1:-1], json.dumps(plain)[1:-1])
    return any(each in message for each in written)


def hide_in_log(texts: Iterable[str]) -> None:
    """Makes vLLM's log leave out a template's reason that shows one of the texts."""
    hidden = tuple(texts)

    def leave_out(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if any(shows(text, message) for text in hidden):
            record.msg, record.args = _HIDDEN, ()
            record.exc_info = record.exc_text = None
        return True

    logging.getLogger(_LOGGER).addFilter(leave_out)
