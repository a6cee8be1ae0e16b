"""The lines of a user's code that an error came from, or where a function is defined."""

from __future__ import annotations

import functools
import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_OURS = str(Path(__file__).parent)
_LIBRARIES = tuple(
    f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def line_of_error(error: BaseException) -> str | None:
    """`FILE:LINE` of the innermost line that an error passed through, libraries left out.

    A file that cannot be read as Python has the line of its fault. None if there is no such line.
    """
    if isinstance(error, SyntaxError) and _is_users(error.filename or "<"):
        return _named(error.filename or "", error.lineno or 1)
    places = [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    own = [place for place in places if _is_users(place[0])]
    return _named(*own[-1]) if own else None


def line_of_definition(function: Callable[..., Any]) -> str | None:
    """`FILE:LINE` of a function, or of the method that makes an object one; None of built-ins."""
    found = inspect.unwrap(function)
    while isinstance(found, functools.partial):
        found = found.func
    if not hasattr(found, "__code__"):
        found = getattr(found, "__func__", None) or vars(type(found)).get("__call__")
    code = getattr(found, "__code__", None)
    return None if code is None else _named(code.co_filename, code.co_firstlineno)


def _is_users(file: str) -> bool:
    """False for libraries, this folder, and code that no file holds (`<string>`)."""
    return not file.startswith(("<", _OURS, *_LIBRARIES))


def _named(file: str, line: int) -> str:
    """The place, with a path from the working directory if the file lies in it."""
    inside = os.path.relpath(file)
    return f"{file if inside.startswith('..') else inside}:{line}"
