"""The system text of one policy in a conversation that has a system message of its own, or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SEPARATOR = "\n\n"
"""Between a policy's system text and the client's own system message."""


def with_system(text: str, messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The conversation with one system message that begins with a text."""
    first: Mapping[str, Any] = messages[0] if messages else {}
    if first.get("role") != "system":
        return [{"role": "system", "content": text}, *messages]
    content = first.get("content") or ""
    merged = _merged(text, content) if isinstance(content, str) else _in_parts(text, content)
    return [{**first, "content": merged}, *messages[1:]]


def _in_parts(text: str, parts: Iterable[Any]) -> list[Any]:
    """Content in parts that begins with a text. It goes into the first part: vLLM writes line ends
    between parts for some chat templates and none for others."""
    first, *others = parts
    own = first.get("text") if isinstance(first, Mapping) else None
    if not isinstance(own, str):
        return [{"type": "text", "text": text + _SEPARATOR}, first, *others]
    return [{**first, "text": _merged(text, own)}, *others]


def _merged(text: str, own: str) -> str:
    return f"{text}{_SEPARATOR}{own}" if own else text
