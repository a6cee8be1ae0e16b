"""Standard streams of the `prefmix` command that are closed, full or of a narrow encoding."""

from __future__ import annotations

import io
import os
import sys


def prepare_streams() -> None:
    """Opens closed standard streams on /dev/null, and lets any text be printed.

    A file or socket that is opened while descriptor 1 is closed becomes descriptor 1, and would
    receive what this process and its children print.
    """
    missing = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            os.set_inheritable(opened, True)
    for name in missing:
        number = ("stdin", "stdout", "stderr").index(name)
        setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as Python does for stderr
