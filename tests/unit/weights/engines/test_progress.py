"""A long job shows bars on a terminal and lines in a log, with the right numbers."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from prefmix.weights.engines.progress import Progress, duration
from prefmix.weights.fit.job import FitJob
from prefmix.weights.fit.sampling import FitInputs
from prefmix.weights.fit.sequence_level.mirror_descent import DescentSettings
from prefmix.weights.fit.settings import FitSettings
from support.fit.toy_engine import ToyEngine


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO) -> list[str]:
    """Every state that was shown, without the blanks that fill the line."""
    text = stream.getvalue().replace("\r", "\n")
    return [line.rstrip() for line in text.split("\n") if line.strip()]


def test_a_terminal_sees_a_bar_with_rate_and_remaining_time() -> None:
    clock, stream = Clock(), Terminal()
    with Progress(stream, clock=clock).stage("sample", 1200, "responses").working("round 2") as it:
        for _ in range(3):
            clock.now += 20
            it.advance(400)
    assert shown(stream) == [
        "sample   .................... 0/1,200 responses (round 2)",
        "sample   ######.............. 400/1,200 responses, 20/s, 40 s left (round 2)",
        "sample   #############....... 800/1,200 responses, 20/s, 20 s left (round 2)",
        "sample   #################### 1,200/1,200 responses, 20/s",
    ]
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\n")


def test_a_bar_is_never_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    Progress(stream).stage("sample", 10**9, "responses").advance(1)
    assert {len(line) for line in stream.getvalue().split("\r")[1:]} == {39}


def test_a_log_gets_a_line_now_and_then() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(stream, clock=clock)
    sampling = progress.stage("sample", 1000, "responses")
    scoring = progress.stage("score", 3000, "responses")
    with sampling.working():
        for _ in range(100):
            clock.now += 1
            sampling.advance(10)
    with scoring.working("measure, polite"):
        clock.now += 25
        scoring.advance(1000)
    assert stream.getvalue().splitlines() == [
        "sample: 300/1,000 responses, 10/s, 1 min 10 s left",
        "sample: 600/1,000 responses, 10/s, 40 s left",
        "sample: 900/1,000 responses, 10/s, 10 s left",
        "score: 1,000/3,000 responses, 40/s, 50 s left (measure, polite)",
    ]


def test_a_quick_job_leaves_a_log_alone_and_a_quiet_one_everything() -> None:
    log, terminal = io.StringIO(), Terminal()
    for progress in (Progress(log), Progress(terminal, quiet=True)):
        with progress.stage("descend", 10, "steps").working() as stage:
            stage.advance(10)
    assert (log.getvalue(), terminal.getvalue()) == ("", "")


def test_stages_that_take_turns_have_rates_of_their_own() -> None:
    clock = Clock()
    progress = Progress(io.StringIO(), clock=clock)
    slow, quick = progress.stage("a", 40, "x"), progress.stage("b", 4000, "x")
    for _ in range(2):
        with slow.working():
            clock.now += 10
            slow.advance(10)
        with quick.working():
            clock.now += 1
            quick.advance(1000)
    assert str(slow) == "20/40 x, 1/s, 20 s left"
    assert str(quick) == "2,000/4,000 x, 1,000/s, 2 s left"


def test_what_was_done_before_does_not_count_towards_the_rate() -> None:
    clock = Clock()
    with Progress(io.StringIO(), clock=clock).stage("a", 100, "x").working() as stage:
        stage.advance(50, is_new=False)
        assert str(stage) == "50/100 x"
        clock.now += 10
        stage.advance(10)
        assert str(stage) == "60/100 x, 1/s, 40 s left"
        stage.finish()
    assert str(stage) == "100/100 x, 1/s"


def test_an_error_has_a_line_of_its_own() -> None:
    stream = Terminal()
    with (
        pytest.raises(KeyboardInterrupt),
        Progress(stream).stage("sample", 10, "responses").working(),
    ):
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("sampler", "stages"),
    [
        ("mixture", ["sample", "score"]),
        ("reference", ["sample", "score", "descend", "sweep", "certify"]),
    ],
)
def test_every_stage_of_a_fit_has_a_bar_that_ends(
    sampler: str, stages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    toy = ToyEngine()
    settings = FitSettings(
        sampler=sampler,  # type: ignore[arg-type]
        num_responses=4,
        num_rounds=3,
        round_prompts=5,  # not a divisor: a round may draw a prompt only once
        descent=DescentSettings(num_steps=250),
    )
    inputs = FitInputs(
        spec=toy.spec,
        prompts=toy.prompts,
        settings=settings,
        engine=lambda: toy,
        content_hashes={},
        cache=tmp_path,
    )
    FitJob(inputs).run()
    last = {line.split()[0]: line for line in shown(stream)}
    assert sorted(last) == sorted(stages)
    assert all(" #################### " in line for line in last.values())
    assert stream.getvalue().endswith("\n")
