"""A call that may be refused, as a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Exception)


def attempt(call: Callable[[], _T], *refusals: type[_E]) -> tuple[_T | None, _E | None]:
    """(what the call returned, None) or (None, its refusal); any other exception goes through."""
    try:
        return call(), None
    except refusals as error:
        return None, error
