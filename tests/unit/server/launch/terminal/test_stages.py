"""The stages of a start: calm lines in a log, one bar in a terminal."""

from __future__ import annotations

import os
import re
import threading

import pytest

from prefmix.mixing import start_stages
from prefmix.mixing.start_stages import announce, announce_loading
from prefmix.server.launch.terminal import stages
from prefmix.server.launch.terminal.stages import StartStages
from prefmix.weights.engines.quiet import held_back_stderr

BAR = "Loading safetensors checkpoint shards:  50% Completed | {}/{} [00:01<00:01,  1.2s/it]\n"


class Screen:
    """A start of three checkpoints, at a clock of the test."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        self.written = b""
        self.now_s = 0.0
        self.stages = StartStages(
            self.write, is_terminal=is_terminal, num_checkpoints=3, clock=lambda: self.now_s
        )

    def write(self, content: bytes) -> None:
        self.written += content

    def after(self, seconds: float) -> str:
        """The text written until then, with a tick each second."""
        self.written = b""
        for _ in range(int(seconds)):
            self.now_s += 1
            self.stages.tick()
        return self.written.decode()


def test_a_quick_start_has_no_lines() -> None:
    screen = Screen()
    for order, text in ((stages.IMPORT, "loading vLLM"), (100, "loading policy a (1 of 3)")):
        screen.stages.enter(order, text)
        assert screen.after(2) == ""
    screen.stages.stop()
    assert screen.after(60) == ""


def test_a_slow_stage_is_told_with_the_time_and_seldom_again() -> None:
    screen = Screen()
    screen.stages.enter(stages.IMPORT, "loading vLLM")
    assert screen.after(20) == "prefmix: loading vLLM (5 s)\n"
    assert screen.stages.take("prefmix-stage: 101 loading policy b (2 of 3)\n")
    assert screen.after(3) == "prefmix: loading policy b (2 of 3) (21 s)\n"
    assert screen.after(57).splitlines() == ["prefmix: still loading policy b (2 of 3) (51 s)"]


def test_vllms_bar_of_files_is_part_of_the_stage() -> None:
    screen = Screen()
    screen.stages.enter(100, "loading policy a (1 of 3)")
    assert screen.stages.take(BAR.format(0, 1))
    assert screen.stages.take("\n"), "the end of a bar"
    assert screen.after(5) == "prefmix: loading policy a (1 of 3) (5 s)\n"
    assert screen.stages.take("(Worker pid=3) " + BAR.format(1, 4))
    assert screen.after(5) == "prefmix: loading policy a (1 of 3), file 2 of 4 (10 s)\n"
    screen.stages.enter(101, "loading policy b (2 of 3)")
    assert screen.after(5) == "prefmix: loading policy b (2 of 3) (15 s)\n"


def test_a_stage_of_several_engines_is_awaited() -> None:
    screen = Screen()
    called: list[float] = []
    screen.stages.call_at(940, 2, lambda: called.append(screen.now_s))
    for line in ("900 compiling", "940 connecting the engine", "900 compiling"):
        assert screen.stages.take(f"prefmix-stage: {line}\n")
    assert called == []
    for _ in range(3):
        assert screen.stages.take("prefmix-stage: 940 connecting the engine\n")
    assert called == [0.0], "once, with the second engine"


def test_stages_never_go_back() -> None:
    """Two engines of a group, or two ranks, tell the same stages."""
    screen = Screen()
    screen.stages.enter(900, "compiling and warming up")
    screen.stages.enter(100, "loading policy a (1 of 3)")
    assert screen.after(6) == "prefmix: compiling and warming up (5 s)\n"


@pytest.mark.parametrize(
    "line",
    [
        "(APIServer pid=1) WARNING 11-20 11:05:02 [a.py:1] careful",
        "prefmix: loading policies",
        "prefmix-stage: no number",
        "100% Completed | 1/1 [",
    ],
)
def test_other_lines_are_no_stages(line: str) -> None:
    assert not Screen().stages.take(line)


def test_a_terminal_has_one_bar_that_other_lines_push_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    screen = Screen(is_terminal=True)
    screen.stages.enter(stages.IMPORT, "loading vLLM")
    assert screen.after(1) == "\rprefmix: #............... loading vLLM (1 s)"
    screen.stages.line(b"prefmix: warning: careful\n")
    erased = "\r" + " " * len("prefmix: #............... loading vLLM (1 s)") + "\r"
    assert screen.written.decode().endswith(erased + "prefmix: warning: careful\n")
    screen.stages.enter(990, "opening the server, whose name is far too long for the terminal")
    drawn = screen.after(1)
    assert drawn.startswith("\rprefmix: opening the server, whose name is far too")
    assert drawn.endswith(" (2 s)"), "the time is seen, whatever else is cut"
    assert len(drawn.strip("\r")) == 59
    screen.written = b""
    screen.stages.stop()
    assert screen.written.decode() == "\r" + " " * 59 + "\r"
    assert screen.after(3) == ""


@pytest.mark.parametrize(
    ("columns", "drawn"),
    [
        (80, "prefmix: ##############.. opening the server (1 s)"),
        (40, "prefmix: opening the server (1 s)"),
        (30, "prefmix: opening the se (1 s)"),
        (4, " (1"),
    ],
)
def test_a_narrow_terminal_has_no_bar(
    columns: int, drawn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = Screen(is_terminal=True)
    screen.stages.enter(990, "opening the server")
    assert screen.after(1) == f"\r{drawn}"


def test_processes_tell_only_who_asks(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(start_stages.VARIABLE, raising=False)
    announce(100, "x")
    assert capfd.readouterr().err == ""
    monkeypatch.setenv(start_stages.VARIABLE, "1")
    for index in range(3):
        announce_loading(index, ["policy a", "policy b"])
    screen = Screen()
    lines = capfd.readouterr().err.splitlines()
    assert [screen.stages.take(line) for line in lines] == [True] * 3
    assert lines == [
        "prefmix-stage: 100 loading policy a (1 of 2)",
        "prefmix-stage: 101 loading policy b (2 of 2)",
        "prefmix-stage: 900 compiling and warming up",
    ]
    assert os.environ[start_stages.VARIABLE] == "1"


def test_a_stage_of_a_batch_job_is_shown_although_stderr_is_held_back(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "CALM_S", 0.0)
    tick, ticks = StartStages.tick, threading.Semaphore(0)
    monkeypatch.setattr(StartStages, "tick", lambda self: (tick(self), ticks.release()))
    with stages.shown("starting the engine with a, b"), held_back_stderr():
        os.write(2, b"noise of a library\n")
        assert [ticks.acquire(timeout=60) for _ in range(2)] == [True, True]
    (said,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"prefmix: starting the engine with a, b \(\d+ s\)", said)
    assert "start-stages" not in {thread.name for thread in threading.enumerate()}


def test_a_handler_may_stop_what_its_own_thread_has_begun() -> None:
    screen = Screen()
    screen.stages.enter(stages.IMPORT, "loading vLLM")
    with screen.stages._lock:
        screen.stages.stop()


def test_a_log_that_nobody_reads_does_not_hold_up_the_end() -> None:
    """A signal's handler stops the stages while the thread that fills the log waits for room."""
    writes, has_room = threading.Event(), threading.Event()

    def write(content: bytes) -> None:
        writes.set()
        has_room.wait(60)

    shown = StartStages(write, is_terminal=False)
    filler = threading.Thread(target=shown.line, args=(b"a line\n",))
    filler.start()
    assert writes.wait(60)
    end = threading.Thread(target=shown.stop)
    end.start()
    end.join(30)
    has_ended = not end.is_alive()
    has_room.set()
    for thread in (filler, end):
        thread.join(60)
    assert has_ended
