"""A closed terminal ends the server; a SIGHUP that someone sends does not."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import signal, sys, time
from pathlib import Path
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
else:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
from prefmix.server.launch.sighup import SighupReload
with SighupReload(Path(sys.argv[2])):
    Path(sys.argv[2], "ready").touch()
    time.sleep(float(sys.argv[3]))
"""


@pytest.mark.parametrize(("how", "survives"), [("plain", False), ("nohup", True)])
def test_a_closed_terminal_ends_what_was_not_started_with_nohup(
    tmp_path: Path, how: str, survives: bool
) -> None:
    pid, terminal = start(tmp_path, how)
    os.close(terminal)
    if survives:
        time.sleep(0.5)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == (signal.SIGKILL if survives else signal.SIGTERM)


def test_a_signal_that_is_sent_ends_nothing(tmp_path: Path) -> None:
    pid, terminal = start(tmp_path, "plain")
    os.kill(pid, signal.SIGHUP)
    time.sleep(0.3)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(terminal)


def start(folder: Path, how: str) -> tuple[int, int]:
    """The script in a terminal of its own: its process and the terminal's other end."""
    master, slave = pty.openpty()
    words = [sys.executable, "-c", SCRIPT, how, str(folder), "30"]
    # A session's first terminal becomes its controlling one; the shell opens it.
    name = os.ttyname(slave)
    shell = ["/bin/sh", "-c", f'exec "$@" <{name} >{name} 2>&1', "sh", *words]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    pid = os.posix_spawn("/bin/sh", shell, environ, setsid=True)
    os.close(slave)
    deadline = time.monotonic() + 20
    while not (folder / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return pid, master
