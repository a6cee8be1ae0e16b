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
from typing import IO, Any, TextIO

_LAST_CHARS = 4000


@contextlib.contextmanager
def held_back_stderr(*plain: type[Exception]) -> Iterator[None]:
    """Holds back everything written to standard error; its end is shown if the block raises.

    Args: plain: errors that say all there is to say; they show nothing more.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            with _stderr_to(log), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except plain:
            raise
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-_LAST_CHARS:])
            raise


@contextlib.contextmanager
def _stderr_to(log: IO[str]) -> Iterator[None]:
    """Sends descriptor 2 to `log`, and `sys.stderr` where that is something else."""
    shown = sys.stderr
    held = None if _writes_to_descriptor_2(shown) else _HeldStream(shown, log)
    if held is not None:
        sys.stderr = held
    shown.flush()
    kept = os.dup(2)
    try:
        os.dup2(log.fileno(), 2)
        yield
    finally:
        if held is not None:
            held.let_go()
            sys.stderr = shown
        shown.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _writes_to_descriptor_2(stream: TextIO) -> bool:
    """False in a notebook, whose standard error is a message to the browser."""
    try:
        return stream.fileno() == 2
    except OSError:
        return False


class _HeldStream:
    """Stands for a text stream. Loggers that are set up meanwhile keep it, so it must last."""

    def __init__(self, stream: TextIO, log: IO[str]) -> None:
        self._stream = stream
        self._target: IO[str] = log

    def let_go(self) -> None:
        """Writes to the stream itself from now on."""
        self._target.flush()
        self._target = self._stream

    def write(self, text: str) -> int:
        return self._target.write(text)

    def flush(self) -> None:
        self._target.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
