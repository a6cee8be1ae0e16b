"""An end that takes long says what it waits for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefmix.server.launch.terminal import end_watch

SCRIPT = """
import subprocess, sys, time
from prefmix.server.launch.terminal import end_watch
from prefmix.server.launch.terminal.startup_log import say

end_watch.FIRST_S, end_watch.REPEAT_S = 0.1, 0.5
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
lines = []

def told(line):
    say(line)
    lines.append(line)

def wait_for(words):
    while not (lines and words in lines[-1]):
        time.sleep(0.05)

watch = end_watch.EndWatch(told)
watch.start()
watch.start()
wait_for("python")
child.kill()
child.wait()
wait_for("this process")
"""


def test_the_processes_that_are_left_are_named(tmp_path: Path) -> None:
    root = Path(__file__).parents[5]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert run.returncode == 0, run.stderr
    first, *_, last = run.stderr.splitlines()
    assert re.fullmatch(
        r"prefmix: ending for \d+ s, still running: python\S* \(process \d+\)", first
    )
    assert last.endswith("still running: this process, which tidies up")


def test_nothing_is_said_after_the_end_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the last line, however long the rest of the process takes."""
    monkeypatch.setattr(end_watch, "FIRST_S", 0.1)
    lines: list[str] = []
    watch = end_watch.EndWatch(lines.append)
    watch.start()
    watch.stop()
    time.sleep(0.4)
    assert lines == []
