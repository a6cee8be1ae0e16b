"""Places in a body that pydantic's errors are about.

An error's location has the names of union branches and of wrapping types between those of fields
(`vllm_xargs.a.list[union[str,int,float]].1.str`). The body itself tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MAX_NAME_CHARS = 40
_MAX_PATH_CHARS = 160

Place = tuple[str | int, ...]
"""Names of fields and indices of items, from the outside in."""


def place_of(error: dict[str, Any], body: object) -> tuple[Place, object]:
    """The part of a body that an error is about, as far as the body has it, and its value.

    Args:
      error: one of pydantic's.
      body: what was validated.
    Returns: an empty place for an error about anything but the body.
    """
    root, *names = error.get("loc") or ("",)
    if root != "body":
        return (), body
    place: list[str | int] = []
    for name in names:
        if (isinstance(body, dict) and name in body) or (
            isinstance(body, list) and isinstance(name, int) and 0 <= name < len(body)
        ):
            body = body[name]
            place.append(name)
    return tuple(place), body


def written(place: Sequence[str | int]) -> str:
    """A place as people write it: `vllm_xargs.a[1]`."""
    text = "".join(
        f"[{name}]" if isinstance(name, int) else f".{name:.{_MAX_NAME_CHARS}}" for name in place
    ).removeprefix(".")
    return text if len(text) <= _MAX_PATH_CHARS else f"{text[:_MAX_PATH_CHARS]}..."
