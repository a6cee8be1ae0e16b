"""The system text of one policy in a conversation that has a system message of its own, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SEPARATOR = "\n\n"
"""Between a policy's system text and the client's own system message."""


def with_system(text: str, messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The conversation with one system message that begins with a text."""
    first: Mapping[str, Any] = messages[0] if messages else {}
    if first.get("role") != "system":
        return [{"role": "system", "content": text}, *messages]
    content = first.get("content") or ""
    if isinstance(content, str):
        merged: Any = f"{text}{_SEPARATOR}{content}" if content else text
    else:
        merged = [{"type": "text", "text": text + _SEPARATOR}, *content]
    return [{**first, "content": merged}, *messages[1:]]
