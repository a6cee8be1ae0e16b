"""A filter on stderr that hides tracebacks while the engine starts and remembers their cause.

vLLM reports a failed start as several tracebacks, one per process. While a `StartupLog` is open,
everything that this process and its children write to stderr passes through it. Tracebacks are
held back, and their exception is remembered, until `release` says that the server runs. Harmless
lines (`harmless_lines`) are always dropped. Every other line passes unchanged.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from prefmix.mixing import start_stages
from prefmix.server.launch.terminal.harmless_lines import HarmlessLineFilter
from prefmix.server.launch.terminal.stages import StartStages, is_own, writer

OWN_PREFIX = "prefmix: "
"""The beginning of each of the launcher's own lines."""

# "(EngineCore pid=12) ERROR 11-20 11:05:02 [core.py:1510] text", or a plain line.
_LOG_LINE = re.compile(
    r"(?:\((?P<process>[^)]*\bpid=\d+)\) )?(?:[A-Z]+ \S+ \S+ \[[^\]]*\] )?(?P<text>.*)"
)
_EXCEPTION = re.compile(r"(?P<type>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$")
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_ANNOUNCEMENT = re.compile(
    r"(EngineCore|WorkerProc) failed to start\.|WorkerProc hit an exception\."
    r"|Process [\w-]+:$|Worker proc \S+ died unexpectedly"
)
# These exceptions only say that another process failed.
_SECONDARY = ("KeyboardInterrupt", "SystemExit", "Engine core init", "WorkerProc init")

_BURST_S = 30.0
"""Tracebacks of a running server that come within this time have one cause, the first."""

_LIFETIME_S = 60.0
"""A running server that ends later has another cause."""


def say(line: str) -> None:
    """Prints one of the launcher's own lines."""
    print(f"{OWN_PREFIX}{line}", file=sys.stderr, flush=True)


class TracebackFilter:
    """Hides the lines of tracebacks and keeps the first one's cause."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: clock: seconds, for tests."""
        self._clock = clock
        self._found: tuple[str, float] | None = None
        self._is_running = False
        self._inside: set[str] = set()
        self._decided = False

    @property
    def cause(self) -> str | None:
        """The first failing process's exception, as `Type: message`; None if nothing failed.

        What failed more than a minute ago is no cause for a server that runs.
        """
        return None if self._found is None or self._is_past(_LIFETIME_S) else self._found[0]

    def begin_to_run(self) -> None:
        """Forgets the start: what failed in it is not why the server ends."""
        self._is_running, self._decided, self._found = True, False, None

    def _is_past(self, seconds: float) -> bool:
        """True for a cause that was found longer ago while the server ran."""
        found = self._found
        return self._is_running and found is not None and self._clock() - found[1] > seconds

    def show(self, line: str) -> bool:
        """True if a line is to be shown, False if it belongs to a traceback."""
        match = _LOG_LINE.match(line)
        assert match is not None, "the pattern matches every line"
        process, text = match["process"] or "", match["text"].rstrip("\r\n")
        if text.startswith("Traceback (most recent call last):"):
            self._inside.add(process)
            return False
        if _ANNOUNCEMENT.match(text):
            return False
        if text.startswith(_CHAINED):
            self._inside.add(process)
            self._decided = False
            return False
        if process not in self._inside:
            # vLLM logs the empty line between two chained tracebacks with its prefix.
            return bool(text) or not (self._inside or process)
        if text and not text[0].isspace() and (found := _EXCEPTION.match(text)):
            self._inside.discard(process)
            self._remember(found)
        return False

    def _remember(self, found: re.Match[str]) -> None:
        name = found["type"].rpartition(".")[2]
        sentence = f"{name}: {found['message']}" if found["message"] else name
        if sentence.removeprefix("RuntimeError: ").startswith(_SECONDARY):
            return
        if not self._decided or self._is_past(_BURST_S):
            self._found = (sentence, self._clock())
            self._decided = True


class StartupLog:
    """Puts a filtering pipe in front of stderr, for this process and its children."""

    def __init__(self, *, enabled: bool, num_checkpoints: int = 1) -> None:
        """Args:
        enabled: False lets everything pass, and shows no stages.
        num_checkpoints: how many checkpoints are loaded.
        """
        self._enabled = enabled
        self._num_checkpoints = num_checkpoints
        self._stages: StartStages | None = None
        self._filter = TracebackFilter()
        self._harmless = HarmlessLineFilter()
        self._released = threading.Event()
        self._muted = threading.Event()
        self._stderr = -1
        self._reader: threading.Thread | None = None

    @property
    def cause(self) -> str | None:
        """The exception of the process that failed first, as TracebackFilter.cause."""
        return self._filter.cause

    def __enter__(self) -> Self:
        """Starts filtering."""
        if self._enabled:
            # Runs last of all: C++ libraries print harmless lines while they are unloaded.
            atexit.register(_silence_stderr)
            sys.stderr.flush()
            self._stderr = os.dup(2)
            self._stages = StartStages(
                writer(self._stderr),
                is_terminal=os.isatty(self._stderr),
                num_checkpoints=self._num_checkpoints,
            )
            self._stages.start()
            os.environ[start_stages.VARIABLE] = "1"
            read_end, write_end = os.pipe()
            os.dup2(write_end, 2)
            os.close(write_end)
            self._reader = threading.Thread(target=self._pump, args=(read_end,), daemon=True)
            self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives stderr back."""
        self.close()

    def close(self) -> None:
        """Gives stderr back, after the last lines have passed."""
        if self._reader is not None:
            sys.stderr.flush()
            os.dup2(self._stderr, 2)
            # A process that outlives this one holds the pipe open: do not wait for it.
            self._reader.join(timeout=2)
        self._end_stages()

    def stage(self, order: int, text: str) -> None:
        """Shows that a stage of the start begins. Args: as StartStages.enter."""
        if self._stages is not None:
            self._stages.enter(order, text)

    def when_told(self, order: int, times: int, call: Callable[[], None]) -> bool:
        """Calls a function once processes have told a stage so often. Args: as StartStages.call_at.

        Returns: False if this log shows no stages, so that it never happens.
        """
        if self._stages is not None:
            self._stages.call_at(order, times, call)
        return self._stages is not None

    def say(self, line: str) -> None:
        """Prints one of the launcher's own lines, even while this process ends silently."""
        writer(2 if self._stderr < 0 else self._stderr)(f"{OWN_PREFIX}{line}\n".encode())

    def _end_stages(self) -> None:
        os.environ.pop(start_stages.VARIABLE, None)
        if self._stages is not None:
            self._stages.stop()

    def release(self) -> None:
        """Shows tracebacks from now on, because the server runs and any failure is news."""
        self._filter.begin_to_run()
        self._released.set()
        self._end_stages()

    def mute(self) -> None:
        """Shows only the launcher's own lines from now on, because the end was asked for."""
        self._muted.set()
        self._end_stages()

    def _shows(self, text: str) -> bool:
        if self._muted.is_set():
            return text.startswith(OWN_PREFIX)
        shown = self._filter.show(text) or self._released.is_set()
        return shown and not self._harmless.is_harmless(text)

    def _pump(self, read_end: int) -> None:
        with os.fdopen(read_end, "rb") as stream, contextlib.suppress(OSError):
            assert self._stages is not None, "it is made before this thread"
            for line in stream:
                text = line.decode(errors="replace")
                # An engine that another machine asks may check itself after its start is over.
                released = self._released.is_set()
                tells_stage = is_own(text) if released else self._stages.take(text)
                if not tells_stage and self._shows(text):
                    self._stages.line(line)


def _silence_stderr() -> None:
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
