"""The stages of a start, with the time since it began: one bar in a terminal, calm lines in a log.

A stage is told in a log once it has lasted for CALM_S, and again every REPEAT_S, as one that goes
on. So a quick start has no such lines. In a terminal the bar's length is the share of stages, not
of time.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator

from prefmix.mixing.start_stages import LOADING, MARK, SELF_CHECK, SERVER, WARM_UP

IMPORT, FILES, PROCESSES = 10, 20, 30
"""Orders of the launcher's own stages, beside those of prefmix.mixing.start_stages."""

CALM_S = 5.0
"""The least time between two lines of a log."""

REPEAT_S = 30.0
"""Seconds after which the same stage is told again."""

_STOP_S = 1.0
"""Time that an end waits for a write, which takes for ever if nobody reads the terminal or log."""

_TICK_S = 0.25
_BAR_CHARS = 16
_OWN = re.compile(re.escape(MARK) + r"(\d{1,3}) (.*)")
# vLLM 0.32's bar of a checkpoint's files, a line for each state.
_SHARDS = re.compile(r"checkpoint shards: .*% Completed \| (\d+)/(\d+) \[")


class StartStages:
    """Shows the stages on one descriptor, between the other lines that are written by `line`."""

    def __init__(
        self,
        write: Callable[[bytes], None],
        *,
        is_terminal: bool,
        num_checkpoints: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        write: writes to the terminal or log.
        is_terminal: draw a bar.
        num_checkpoints: how many checkpoints are loaded; only the bar's length depends on it.
        clock: seconds, for tests.
        """
        self._write = write
        self._is_terminal = is_terminal
        self._clock = clock
        orders = [LOADING + index for index in range(num_checkpoints)]
        self._orders = [IMPORT, FILES, PROCESSES, *orders, WARM_UP, SELF_CHECK, SERVER]
        self._lock = threading.RLock()  # a signal's handler may stop what its thread has begun
        self._began_at = self._said_at = clock()
        self._order, self._text, self._shards, self._said = 0, "", "", ""
        self._width, self._drawn = 0, ""
        self._waiting: tuple[int, int, Callable[[], None]] | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to show."""
        self._thread = threading.Thread(target=self._run, name="start-stages", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Shows nothing more."""
        self._over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=_STOP_S)
        if self._lock.acquire(timeout=_STOP_S):
            try:
                self._clear()
            finally:
                self._lock.release()

    def enter(self, order: int, text: str) -> None:
        """Begins a stage, unless one of the same order or a later one has begun."""
        with self._lock:
            if order > self._order:
                self._order, self._text, self._shards = order, text, ""

    def call_at(self, order: int, times: int, call: Callable[[], None]) -> None:
        """Calls a function, in the thread that reads, once a stage has been told so many times."""
        self._waiting = (order, times, call)

    def _told(self, order: int) -> None:
        if self._waiting is None or self._waiting[0] != order:
            return
        _, times, call = self._waiting
        self._waiting = (order, times - 1, call) if times > 1 else None
        if self._waiting is None:
            call()

    def take(self, line: str) -> bool:
        """True for a line that only tells a stage, or is empty: it is not to be written."""
        if not line.strip():  # the end of vLLM's bar
            return True
        if (own := _OWN.search(line)) is not None:
            self.enter(int(own[1]), own[2])
            self._told(int(own[1]))
            return True
        shards = _SHARDS.search(line)
        if shards is None:
            return False
        done, total = int(shards[1]), int(shards[2])
        with self._lock:
            self._shards = f", file {min(done + 1, total)} of {total}" if total > 1 else ""
        return True

    def line(self, content: bytes) -> None:
        """Writes another line, which takes the bar's place."""
        with self._lock:
            self._clear()
            self._said_at = self._clock()
            self._write(content)

    def tick(self) -> None:
        """Draws the bar, or writes a line if it is time."""
        with self._lock:
            if not self._text or self._over.is_set():
                return
            now = self._clock()
            elapsed = f" ({now - self._began_at:.0f} s)"
            if self._is_terminal:
                self._draw(f"{self._text}{self._shards}", elapsed)
                return
            text = f"{self._text}{self._shards}{elapsed}"
            is_new = self._text + self._shards != self._said
            if now - self._said_at >= (CALM_S if is_new else REPEAT_S):
                self._said_at, self._said = now, self._text + self._shards
                self._write(f"prefmix: {'' if is_new else 'still '}{text}\n".encode())

    def _draw(self, text: str, elapsed: str) -> None:
        """Draws the bar; on a narrow terminal it leaves out the bar first, and the time last."""
        passed = sum(order <= self._order for order in self._orders)
        filled = _BAR_CHARS * passed // (len(self._orders) + 1)
        bar = "#" * filled + "." * (_BAR_CHARS - filled)
        columns = shutil.get_terminal_size().columns - 1
        line = f"prefmix: {bar} {text}{elapsed}"
        if len(line) > columns:
            line = f"{f'prefmix: {text}'[: max(columns - len(elapsed), 0)]}{elapsed}"[:columns]
        if line == self._drawn:
            return
        self._drawn = line
        self._write(f"\r{line.ljust(self._width)}".encode())
        self._width = len(line)

    def _clear(self) -> None:
        if self._width:
            self._write(b"\r" + b" " * self._width + b"\r")
            self._width, self._drawn = 0, ""

    def _run(self) -> None:
        while not self._over.wait(_TICK_S):
            # A full or closed log must not stop the start.
            with contextlib.suppress(OSError):
                self.tick()


def is_own(line: str) -> bool:
    """True for a line of `prefmix.mixing.start_stages`, which nobody should see."""
    return _OWN.search(line) is not None


@contextlib.contextmanager
def shown(text: str) -> Iterator[None]:
    """Shows one stage on stderr for as long as the block takes, even if that holds stderr back.

    Args: text: a phrase, such as "starting the engine".
    """
    descriptor = os.dup(2)
    stages = StartStages(writer(descriptor), is_terminal=os.isatty(descriptor))
    stages.enter(PROCESSES, text)
    stages.start()
    try:
        yield
    finally:
        stages.stop()
        os.close(descriptor)


def writer(descriptor: int) -> Callable[[bytes], None]:
    """A function that writes to a descriptor, and ignores that it is full or closed."""

    def write(content: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(descriptor, content)

    return write
