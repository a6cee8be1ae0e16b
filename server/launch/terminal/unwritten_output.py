"""Output that a closed pipe or a full disk does not take."""

from __future__ import annotations

import os
import sys


def discard_unwritten_output() -> None:
    """Sends what the output's buffer still holds to /dev/null if it cannot be written.

    Otherwise Python tries again when it exits, and prints a traceback.
    """
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
