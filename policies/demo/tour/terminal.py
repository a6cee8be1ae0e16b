"""Terminal output of the tour: the width of lines, and a line that shows progress."""

from __future__ import annotations

import shutil
import sys
import time


def line_width() -> int:
    """Columns that the tour fills: those of the terminal, within 60 and 100."""
    return max(60, min(100, shutil.get_terminal_size((90, 24)).columns - 1))


class ProgressLine:
    """A line that counts on a terminal; elsewhere it is printed once, at the end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._begun = time.monotonic()
        self._live = sys.stdout.isatty()

    def update(self, detail: str = "") -> None:
        """Rewrites the line on a terminal."""
        if self._live:
            self._write(f"{detail}  {time.monotonic() - self._begun:3.0f} s", end="")

    def done(self, detail: str = "") -> None:
        """Ends the line."""
        self._write(f"{detail}  {time.monotonic() - self._begun:3.0f} s", end="\n")

    def _write(self, detail: str, *, end: str) -> None:
        back = "\r" if self._live else ""
        print(f"{back}{self._text:<52}{detail:>26}", end=end, flush=True)
