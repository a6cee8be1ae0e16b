"""Look-up of a header in an ASGI scope or message.

Starlette's `Headers` decodes every name at every look-up, and the middleware around each request
looks often.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def header(message: Mapping[str, Any], name: bytes) -> str | None:
    """The first header called `name`; None if there is none.

    Args:
      message: a scope or an `http.response.start`; ASGI spells header names in lower case.
      name: the name in lower case.
    """
    for each, value in message.get("headers", ()):
        if each == name:
            return bytes(value).decode("latin-1")
    return None
