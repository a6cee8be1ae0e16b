"""An engine whose server is silent ends; one that is called lives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prefmix.mixing.engine import pulse
from prefmix.mixing.engine.pulse import PulseWatch

SCRIPT = """
import sys, time
from prefmix.mixing.engine.pulse import beat

class Core: pass

core = Core()
for _ in range(9):
    beat(core, 4.0)
    time.sleep(0.5)
print("lived", flush=True)
time.sleep(60)
"""


def test_silence_ends_the_watch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "LOOK_S", 0.01)
    ended: list[float] = []
    over = threading.Event()

    def end(silence_s: float) -> None:
        ended.append(silence_s)
        over.set()

    watch = PulseWatch(end)
    watch.beat(30)
    assert not over.wait(0.2), "30 s were allowed"
    watch.beat(0.2)
    assert over.wait(30)
    time.sleep(0.3)
    assert len(ended) == 1
    assert ended[0] > 0.2


def test_a_process_lives_as_long_as_it_is_called_and_says_why_it_ends() -> None:
    root = Path(__file__).parents[4]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "lived\n")
    assert err.startswith("prefmix: the server on the first machine has not been heard for ")
    assert err.count("\n") == 1
