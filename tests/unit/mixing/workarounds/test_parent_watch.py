"""A process ends after its parent, however that one ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

SCRIPT = """
import multiprocessing, sys, time
from prefmix.mixing.workarounds.parent_watch import watch_parent

def work(depth):
    watch_parent()
    watch_parent()
    if depth:
        multiprocessing.get_context("spawn").Process(target=work, args=(depth - 1,)).start()
    else:
        print("ready", flush=True)
    time.sleep(60)

if __name__ == "__main__":
    work(2)
"""


def test_children_and_grandchildren_of_a_killed_process_end(tmp_path: Path) -> None:
    script = tmp_path / "family.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[4]
    first = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == b"ready\n"
        family = psutil.Process(first.pid).children(recursive=True)
        assert len(family) >= 2
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=60)
        assert alive == []
    finally:
        first.stdout.close()
        first.kill()
