"""Values in messages: spelled as the JSON or YAML that brought them, and cut off.

Whoever sent `true`, `null` or `{"a": 1}` should not read `True`, `None` or `{'a': 1}`. A string
alone has the quotation marks of names in sentences.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

MAX_CHARS = 80
"""Characters of a value that a message shows."""

_MAX_ITEMS = 10


def shown(value: object, most: int = MAX_CHARS) -> str:
    """A value as text for a message; costs no more than what is shown.

    Args:
      value: anything; what JSON does not have is written as Python does.
      most: characters.
    """
    if isinstance(value, str):
        return _cut(repr(value[: most + 1]), most)
    if isinstance(value, (Mapping, list, tuple)) and len(value) > _MAX_ITEMS:
        return f"a {'list' if isinstance(value, (list, tuple)) else 'JSON object'} of " + (
            f"{len(value)} items"
        )
    text = ""
    try:
        for part in _parts(value):
            text += part
            if len(text) > most:
                break
    except TypeError:  # a key that JSON does not have
        return _cut(repr(value), most)
    except ValueError:  # an integer of thousands of digits
        return f"a very long {type(value).__name__}" if not text else _cut(f"{text}...", most)
    return _cut(text, most)


def shown_bytes(count: float) -> str:
    """A size in the largest unit in which it is at least 1: `512 bytes`, `1.3 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def _parts(value: object) -> Iterator[str]:
    """The JSON of a value, piece by piece."""
    if isinstance(value, (Mapping, list, tuple)):
        encoder = json.JSONEncoder(default=_other, ensure_ascii=False, check_circular=False)
        for part in encoder.iterencode(dict(value) if isinstance(value, Mapping) else value):
            yield part if part.isprintable() else part.encode("ascii", "backslashreplace").decode()
    elif value is None or isinstance(value, (bool, int, float)):
        yield json.dumps(value)
    else:
        yield repr(value)


def _other(value: Any) -> Any:
    """Something that JSON has, for what it does not have."""
    return dict(value) if isinstance(value, Mapping) else repr(value)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "..."
