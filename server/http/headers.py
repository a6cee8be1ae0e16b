"""One header of a request or an answer, as ASGI carries it.

Starlette's `Headers` decodes every name for every look; the layers around each request look often.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def header(message: Mapping[str, Any], name: bytes) -> str | None:
    """The first header of that name, None without one.

    Args:
      message: a scope or an `http.response.start`, whose names are in lower case, as ASGI says.
      name: in lower case.
    """
    for each, value in message.get("headers", ()):
        if each == name:
            return bytes(value).decode("latin-1")
    return None
