"""Keeps the policies' system texts out of what a chat template says when it refuses messages."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

_LOGGER = "vllm.renderers.hf"
"""Logs a template's reason (vLLM 0.32)."""
_HIDDEN = "[a reason that shows a policy's system text]"


def shows(text: str, message: str) -> bool:
    """True if a message has a text in it, as it is or with escapes."""
    plain = text.strip()
    written = (plain, repr(plain)[1:-1], json.dumps(plain)[1:-1])
    return any(each in message for each in written)


_RENDERED: Counter[str] = Counter()
"""Texts in conversations that are rendered now; a request may have one that is no policy's any
more."""


@contextlib.contextmanager
def rendering(text: str | None) -> Iterator[None]:
    """Keeps a text out of vLLM's log, once `hide_in_log` was called, for as long as this lasts."""
    if text is None:
        yield
        return
    _RENDERED[text] += 1
    try:
        yield
    finally:
        _RENDERED[text] -= 1
        if not _RENDERED[text]:
            del _RENDERED[text]


def hide_in_log(texts: Callable[[], Iterable[str]]) -> None:
    """Makes vLLM's log leave out a template's reason that shows one of the texts.

    Args: texts: those of the policies in force, beside the ones that are rendered.
    """

    def leave_out(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if any(shows(text, message) for text in (*texts(), *tuple(_RENDERED))):
            record.msg, record.args = _HIDDEN, ()
            record.exc_info = record.exc_text = None
        return True

    logging.getLogger(_LOGGER).addFilter(leave_out)
