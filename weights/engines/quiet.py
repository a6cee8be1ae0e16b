"""A quiet standard error while an engine starts in this process.

vLLM and its libraries write dozens of harmless lines to standard error while they start, some of
them from C++. The lines are held back, and shown only if the start fails.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import IO

_LAST_CHARS = 4000


@contextlib.contextmanager
def held_back_stderr() -> Iterator[None]:
    """Holds back everything written to standard error; its end is shown if the block raises."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            with _stderr_to(log), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-_LAST_CHARS:])
            raise


@contextlib.contextmanager
def _stderr_to(log: IO[str]) -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        os.dup2(log.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
