"""The audit log: one line on stderr for each change of weights and for refused credentials."""

from __future__ import annotations

import json
import logging

from prefmix.server.telemetry.stderr_logger import to_stderr
from prefmix.weights.store.change import Change
from prefmix.weights.store.profiles import ProfileSet

_LOGGER = logging.getLogger("prefmix.audit")


def set_up() -> None:
    """Sends the log to stderr, whatever vLLM's log level is."""
    to_stderr(_LOGGER, logging.Formatter("%(asctime)s prefmix audit: %(message)s"))


def changed(who: str, what: str, change: Change) -> None:
    """Logs a change that is in force, or one that would have changed nothing."""
    before = "none" if change.before is None else _version(change.before)
    result = "unchanged" if change.is_noop else "applied"
    if change.set_aside is not None:
        result += f", broken file kept as {change.set_aside.name}"
    after = _version(change.after)
    _LOGGER.info("by=%s did=%s old=%s new=%s %s", who, one_word(what), before, after, result)


def refused(who: str, what: str, reason: str) -> None:
    """Logs a change that was refused."""
    _LOGGER.warning("by=%s did=%s refused: %s", who, one_word(what), json.dumps(reason))


def one_word(text: str) -> str:
    """Quotes `text` if it could pass for several values of a line, or for another line."""
    is_plain = text.isascii() and text.isprintable() and not set(text) & set(' "=')
    return text if text and is_plain else json.dumps(text)


def login_failed(surface: str, client: str, num_since_last: int) -> None:
    """Logs requests without a valid key or token; shows nothing that they sent."""
    what = "API key" if surface == "key" else "admin token"
    _LOGGER.warning(
        "refused %d since the last such line for want of a valid %s, now from %s",
        num_since_last,
        what,
        one_word(client),  # a proxy may have named it, with the client's own words
    )


def _version(profiles: ProfileSet) -> str:
    return f"{profiles.version}:{profiles.sha256[:12]}"
