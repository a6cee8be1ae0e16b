"""The handler of SIGHUP, which reloads the weights store as POST /admin/weights/reload does.

The signal reaches the process of `prefmix serve`, which need not be one that answers HTTP, so the
handler passes the request on to one that does. A terminal that closes sends the same signal; then
the server ends, as it would without a store, unless it was started with nohup.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Self

from prefmix.server.admin.two_phase_commit import LOCK_TIMEOUT_S, CommitError, ask_any


class SighupReload:
    """Installs the handler while it is entered. Enter it in the main thread."""

    def __init__(self, folder: Path) -> None:
        """Args:
        folder: the folder of the API processes' sockets.
        """
        self._folder = folder
        self._pid = os.getpid()
        self._had_terminal = _has_terminal()
        self._previous: Any = None

    def __enter__(self) -> Self:
        """Installs the handler."""
        self._previous = signal.signal(signal.SIGHUP, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the previous handler back."""
        signal.signal(signal.SIGHUP, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked process has inherited the handler
            signal.signal(number, self._previous)
            os.kill(os.getpid(), number)
        elif self._is_terminal_lost() and self._previous is not signal.SIG_IGN:
            os.kill(self._pid, signal.SIGTERM)
        else:
            # This thread may run the event loop, which has to go on for the answer to come.
            threading.Thread(target=self._pass_on, daemon=True).start()

    def _is_terminal_lost(self) -> bool:
        return self._had_terminal and not _has_terminal()

    def _pass_on(self) -> None:
        message = {"kind": "reload", "who": "SIGHUP"}
        try:
            # A reload that went well is in the audit log.
            ask_any(self._folder, message, timeout_s=2 * LOCK_TIMEOUT_S)
        except CommitError as error:
            print(f"prefmix: SIGHUP: nothing was reloaded: {error}", file=sys.stderr, flush=True)


def _has_terminal() -> bool:
    """True if this process has a controlling terminal that still exists."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
