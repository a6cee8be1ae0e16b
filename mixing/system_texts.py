"""The system text of one policy in a conversation that has a system message of its own, or none."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SEPARATOR = "\n\n"
"""Between a policy's system text and the client's own system message."""


def system_text(value: object) -> str:
    """Returns what can be a policy's system text.

    Raises: ValueError, whose text goes on after "TEXT is" and does not show what came.
    """
    if not isinstance(value, str):
        raise ValueError(f"of type {type(value).__name__}, expected a text")
    if not value.strip():
        raise ValueError("empty; give it a text, or leave it out")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("no text in UTF-8") from None
    controls = (each for each in value if unicodedata.category(each) == "Cc")
    for each in controls:
        if each not in "\n\r\t":
            raise ValueError(
                f"a text with the control character U+{ord(each):04X}; allowed are line ends and "
                "tabs"
            )
    return value


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
