"""Progress of a long job on standard error: a bar on a terminal, an occasional line in a log.

A job has stages (sample, score, ...) that may take turns. Each stage has its own rate, over the
time in which it worked, and its own estimate of the time left. Results of an earlier run that are
only read again count as done, but not towards the rate.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

LINE_INTERVAL_S = 30.0
"""The least time between two lines without a terminal."""
DRAW_INTERVAL_S = 0.1
"""The least time between two states of a bar on a terminal."""

_BAR_CHARS = 20


class Progress:
    """The stages of one job, shown in one place."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        stream: where progress is shown; None is standard error.
        quiet: show nothing.
        clock: seconds, for tests.
        """
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self.clock = clock
        self._on_terminal = self._stream.isatty()
        self._shown_at = clock() - (DRAW_INTERVAL_S if self._on_terminal else 0.0)

    def end_line(self) -> None:
        """Ends the line of an unfinished bar, so that the next output has a line of its own."""
        if self._on_terminal and not self._quiet:
            print(file=self._stream, flush=True)

    def stage(self, name: str, total: int, unit: str) -> Stage:
        """A stage of `total` units of work; `unit` is the plural, such as "responses"."""
        return Stage(self, name, total, unit)

    def show(self, stage: Stage) -> None:
        """Shows the state of a stage, if enough time has passed since the last one."""
        now = self.clock()
        interval_s = DRAW_INTERVAL_S if self._on_terminal else LINE_INTERVAL_S
        is_end = self._on_terminal and stage.done >= stage.total
        if self._quiet or (now - self._shown_at < interval_s and not is_end):
            return
        self._shown_at = now
        if not self._on_terminal:
            print(f"{stage.name}: {stage}", file=self._stream, flush=True)
            return
        filled = _BAR_CHARS * stage.done // max(stage.total, 1)
        bar = "#" * filled + "." * (_BAR_CHARS - filled)
        width = shutil.get_terminal_size().columns - 1
        line = f"{stage.name:<8} {bar} {stage}"[:width].ljust(width)
        print(f"\r{line}", end="\n" if is_end else "", file=self._stream, flush=True)


class Stage:
    """One stage of a job; its work runs inside `working` and calls `advance` after each part."""

    def __init__(self, progress: Progress, name: str, total: int, unit: str) -> None:
        self._progress = progress
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self._num_new = 0
        self._worked_s = 0.0
        self._since = progress.clock()
        self._note = ""

    @contextmanager
    def working(self, note: str = "") -> Iterator[Stage]:
        """Counts the time inside as the stage's own.

        Args: note: the part of the job, such as "round 3"; shown behind the bar.
        """
        self._since, self._note = self._progress.clock(), note
        self._progress.show(self)
        try:
            yield self
        except BaseException:
            self._progress.end_line()
            raise

    def advance(self, count: int, *, is_new: bool = True) -> None:
        """Counts `count` more as done; they count towards the rate only if `is_new`."""
        now = self._progress.clock()
        if is_new:
            self._num_new += count
            self._worked_s += now - self._since
        self._since = now
        self.done += count
        self._progress.show(self)

    def finish(self) -> None:
        """Ends the stage: the rest of the work was not needed."""
        if self.done < self.total:
            self.advance(self.total - self.done, is_new=False)

    def __str__(self) -> str:
        """Done, total, rate and time left, such as `640/1,024 responses, 21.3/s, 18 s left`."""
        text = f"{self.done:,}/{self.total:,} {self.unit}"
        if self._num_new and self._worked_s > 0:
            rate = self._num_new / self._worked_s
            text += f", {rate:,.0f}/s" if rate >= 100 else f", {rate:.3g}/s"
            if self.done < self.total:
                text += f", {duration((self.total - self.done) / rate)} left"
        return f"{text} ({self._note})" if self._note and self.done < self.total else text


def duration(seconds: float) -> str:
    """Seconds in words: `18 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest_s} s"
    hours, rest_min = divmod(minutes, 60)
    return f"{hours} h {rest_min} min" if hours else f"{minutes} min {rest_s} s"
