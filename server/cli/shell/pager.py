"""A pager for text on a terminal, as `man` and `git help` have one."""

from __future__ import annotations

import contextlib
import io
import pydoc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def paged() -> Iterator[None]:
    """Shows the output of the block in $PAGER if it goes to a terminal; else it is only printed."""
    if not sys.stdout.isatty():
        yield
        return
    held = io.StringIO()
    try:
        with contextlib.redirect_stdout(held):
            yield
    finally:
        if held.getvalue():
            pydoc.pager(held.getvalue())
