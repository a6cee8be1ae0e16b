"""The audit log: one line on stderr for each change of weights and for refused credentials.

Its lines are JSON objects if those of the request log are.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from prefmix.server.telemetry.stderr_logger import JsonLines, to_stderr
from prefmix.weights.store.change import Change
from prefmix.weights.store.profiles import ProfileSet

_LOGGER = logging.getLogger("prefmix.audit")


def set_up(*, is_json: bool = False) -> None:
    """Sends the log to stderr, whatever vLLM's log level is."""
    text = logging.Formatter("%(asctime)s prefmix audit: %(message)s")
    to_stderr(_LOGGER, JsonLines() if is_json else text)


def changed(who: str, what: str, change: Change) -> None:
    """Logs a change that is in force, or one that would have changed nothing."""
    before = "none" if change.before is None else _version(change.before)
    after = _version(change.after)
    result = "unchanged" if change.is_noop else "applied"
    fields = {"by": who, "did": what, "old": before, "new": after, "result": result}
    if change.set_aside is not None:
        fields["broken_file"] = change.set_aside.name
        result += f", broken file kept as {change.set_aside.name}"
    line = f"by={who} did={one_word(what)} old={before} new={after} {result}"
    _write(logging.INFO, line, fields)


def refused(who: str, what: str, reason: str) -> None:
    """Logs a change that was refused."""
    fields = {"by": who, "did": what, "result": "refused", "reason": reason}
    line = f"by={who} did={one_word(what)} refused: {json.dumps(reason)}"
    _write(logging.WARNING, line, fields)


def login_failed(surface: str, client: str, num_since_last: int) -> None:
    """Logs requests without a valid key or token; shows nothing that they sent."""
    what = "API key" if surface == "key" else "admin token"
    line = (
        f"refused {num_since_last} since the last such line for want of a valid {what}, now from "
        f"{one_word(client)}"  # a proxy may have named it, with the client's own words
    )
    fields = {"login_failed": surface, "count": num_since_last, "client": client}
    _write(logging.WARNING, line, fields)


def one_word(text: str) -> str:
    """Quotes `text` if it could pass for several values of a line, or for another line."""
    is_plain = text.isascii() and text.isprintable() and not set(text) & set(' "=')
    return text if text and is_plain else json.dumps(text)


def _write(level: int, line: str, fields: dict[str, Any]) -> None:
    _LOGGER.log(level, "%s", line, extra={"fields": fields})


def _version(profiles: ProfileSet) -> str:
    return f"{profiles.version}:{profiles.sha256[:12]}"
