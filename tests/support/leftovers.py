"""Traces that a test leaves behind in its process, found by a look before it and one after it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ENVIRON_AT_START = dict(os.environ)
"""The environment before any test; tests/conftest.py imports this module first."""

_GRACE_S = 5.0
"""Threads and processes that are about to end are given this long; most need none of it."""

_OF_TORCH = "TORCHINDUCTOR_CACHE_DIR"
"""A variable that torch._dynamo sets while it is imported, by whichever test comes first."""

_MONITOR = "tqdm_monitor"
"""A daemon thread that tqdm starts once for the whole process."""

_POOL = "ThreadPoolExecutor-"
"""Threads of a pool; an engine's own, such as those that compile grammars, end with the process."""

_FDS = Path("/proc/self/fd")
_SIGNALS = signal.valid_signals() - {signal.SIGALRM}
"""All but pytest-timeout's, which a failed test gives back early."""
_LISTENING = "0A"
"""The state of a listening socket in /proc/net/tcp."""


class Traces:
    """The state of the process now; `left` names the differences since."""

    def __init__(self) -> None:
        self._handlers = _handlers()
        self._environ = dict(os.environ)
        self._folder = os.getcwd()
        self._path = list(sys.path)
        self._threads = set(threading.enumerate())
        self._children = _children()
        self._sockets = _sockets()

    def left(self, *, of_vllm: bool = False, processes: bool = True) -> list[str]:
        """A sentence for each thing that is new or changed.

        Args:
          of_vllm: without what vLLM itself keeps in a process that runs an engine: variables,
            folders to import from, the ports of its process groups, its pools of threads.
          processes: with the processes that still run.
        """
        found = [
            f"the handler of {signal.Signals(number).name} is now {handler}"
            for number, handler in _handlers().items()
            if handler != self._handlers[number]
        ]
        if os.getcwd() != self._folder:
            found.append(f"the working directory is {os.getcwd()}, no longer {self._folder}")
        if not of_vllm:
            found += [f"{name} is changed in os.environ" for name in sorted(self._changed())]
            if sys.path != self._path:
                found.append(f"sys.path has changed: {set(sys.path) ^ set(self._path)}")
        return found + self._still_there(of_vllm, processes)

    def _changed(self) -> set[str]:
        now = dict(os.environ)
        own = {"PYTEST_CURRENT_TEST", _OF_TORCH}
        names = (self._environ.keys() | now.keys()) - own
        return {name for name in names if self._environ.get(name) != now.get(name)}

    def _still_there(self, of_vllm: bool, processes: bool) -> list[str]:
        deadline = time.monotonic() + _GRACE_S
        while (found := list(self._running(of_vllm, processes))) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def _running(self, of_vllm: bool, processes: bool) -> Iterator[str]:
        for thread in set(threading.enumerate()) - self._threads:
            if thread.name == _MONITOR or (of_vllm and thread.name.startswith(_POOL)):
                continue
            yield f"the {'daemon ' * thread.daemon}thread {thread.name!r} runs"
        for pid in _children() - self._children if processes else ():
            yield f"the process {pid} ({_command(pid)}) runs"
        for port in () if of_vllm else _listening_ports(_sockets() - self._sockets):
            yield f"port {port} is listened on"


def _handlers() -> dict[int, object]:
    return {number: signal.getsignal(number) for number in _SIGNALS}


def _children() -> set[int]:
    """The ids of the processes that any thread of this process has started."""
    found = set[int]()
    for thread in Path("/proc/self/task").iterdir():
        try:
            found.update(map(int, (thread / "children").read_text().split()))
        except FileNotFoundError:  # the thread has ended meanwhile
            continue
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()[:200]
    except OSError:
        return "just ended"


def _sockets() -> set[str]:
    """The inodes of the sockets that this process has open."""
    found = set[str]()
    for name in os.listdir(_FDS):
        try:
            target = os.readlink(_FDS / name)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            found.add(target[len("socket:[") : -1])
    return found


def _listening_ports(inodes: set[str]) -> list[int]:
    if not inodes:
        return []
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
    ]
    return [
        int(row[1].rpartition(":")[2], 16)
        for row in rows
        if row[3] == _LISTENING and row[9] in inodes
    ]
