"""An end that takes long says what it waits for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
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


def started(watch: end_watch.EndWatch) -> threading.Thread:
    watch.start()
    (thread,) = (each for each in threading.enumerate() if each.name == "end-watch")
    return thread


def test_nothing_is_said_after_the_end_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the last line, however long the rest of the process takes."""
    monkeypatch.setattr(end_watch, "FIRST_S", 50)
    lines: list[str] = []
    watch = end_watch.EndWatch(lines.append)
    thread = started(watch)
    watch.stop()
    thread.join(timeout=40)
    assert not thread.is_alive()
    assert lines == []


def test_what_was_looked_up_before_the_stop_is_not_written_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks, stopped = threading.Event(), threading.Event()

    def slow_look() -> list[str]:
        looks.set()
        assert stopped.wait(60)
        return ["engine"]

    monkeypatch.setattr(end_watch, "FIRST_S", 0)
    monkeypatch.setattr(end_watch, "running_children", slow_look)
    lines: list[str] = []
    watch = end_watch.EndWatch(lines.append)
    thread = started(watch)
    assert looks.wait(60)
    watch.stop()
    stopped.set()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert lines == []


@pytest.mark.parametrize("is_blocked", [False, True])
def test_a_line_that_is_being_written_is_waited_for_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, is_blocked: bool
) -> None:
    writes, freed = threading.Event(), threading.Event()
    lines: list[str] = []

    def slow_write(line: str) -> None:
        writes.set()
        freed.wait(60 if is_blocked else 0.2)
        lines.append(line)

    monkeypatch.setattr(end_watch, "FIRST_S", 0)
    watch = end_watch.EndWatch(slow_write)
    thread = started(watch)
    assert writes.wait(60)
    watch.stop()
    assert len(lines) == (0 if is_blocked else 1)
    freed.set()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert len(lines) == 1
