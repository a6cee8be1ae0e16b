"""A process tree is killed also if one of its processes ends meanwhile."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from prefmix.mixing.workarounds.process_tree import kill_past_ended_children, kill_tree

PARENT = """
import subprocess, sys, time
wait = [sys.executable, "-c", "import time; time.sleep(600)"]
children = [subprocess.Popen(wait) for _ in range(2)]
print("ready", flush=True)
time.sleep(600)
"""


def test_a_child_that_has_ended_saves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    kill = psutil.Process.kill

    def ends_first(process: psutil.Process) -> None:
        kill(process)
        raise psutil.NoSuchProcess(process.pid)

    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == b"ready\n"
        family = psutil.Process(parent.pid).children(recursive=True)
        assert len(family) == 2
        monkeypatch.setattr(psutil.Process, "kill", ends_first)
        kill_tree(parent.pid)
        assert parent.wait(timeout=60) == -9
        assert psutil.wait_procs(family, timeout=60)[1] == []
        kill_tree(parent.pid)  # of nobody
    finally:
        monkeypatch.undo()
        parent.stdout.close()
        parent.kill()


def test_vllm_kills_by_it(vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1 import utils

    monkeypatch.setattr(utils, "kill_process_tree", utils.kill_process_tree)  # put back afterwards
    kill_past_ended_children()
    assert utils.kill_process_tree is kill_tree
    assert "kill_process_tree" in utils.shutdown.__code__.co_names
