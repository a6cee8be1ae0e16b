"""The report's ratios are taken within a round; a bench that ends early shows what it has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from prefmix.bench import report as bench_report
from prefmix.bench.report import Report, Spread, clock


def test_a_slow_round_leaves_ratios_alone() -> None:
    slowness = [1.0, 7.0, 0.3, 2.0]
    above, below = [2 * slow for slow in slowness], [4 * slow for slow in slowness]
    assert Spread.of_ratios(above, below) == Spread(0.5, 0.5, 0.5)


def test_a_spread_is_the_median_between_lowest_and_highest() -> None:
    spread = Spread.of([3.0, 1.0, 100.0])
    assert (spread.low, spread.median, spread.high) == (1.0, 3.0, 100.0)
    assert f"{spread:.1f}" == "3.0 (1.0-100.0)"
    assert Spread(**spread.to_dict()) == spread


def test_rounds_that_are_missing_are_no_ratio() -> None:
    with pytest.raises(ValueError, match="zip"):
        Spread.of_ratios([1.0, 2.0], [1.0])


def table(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [["what", "tokens/s"], *([one["what"], f"{one['speed']:.1f}"] for one in found)]


def report() -> Report[dict[str, Any]]:
    return Report("a heading", table, line=dict, num_left=1, num_steps=4)


FIRST, SECOND = {"what": "one policy", "speed": 12.0}, {"what": "mixture", "speed": 4.0}


def test_measurements_are_printed_at_once_and_the_table_in_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with report() as running:
        for one in (FIRST, SECOND):
            running.add([one])
            line = json.loads(capsys.readouterr().out)
            assert (line["what"], line["speed"]) == (one["what"], one["speed"])
            assert line["versions"]["prefmix"]
            assert line["versions"]["python"]
            assert line["machine"]["cores"] >= 1
            assert line["date"].endswith("+00:00")
    _, heading, where, _, *shown = capsys.readouterr().out.splitlines()
    assert heading == "a heading"
    assert "load average" in where
    assert "cores" in where or "GPU" in where
    assert shown == ["what        tokens/s", "one policy      12.0", "mixture          4.0"]


@pytest.mark.parametrize("end", [SystemExit(143), KeyboardInterrupt(), ValueError("x")])
def test_a_bench_that_is_ended_shows_what_it_has(
    end: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:

    def run(*found: dict[str, Any]) -> None:
        with report() as running:
            running.add(found)
            raise end

    with pytest.raises(type(end)):
        run(FIRST)
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-2:] == ["what        tokens/s", "one policy      12.0"]
    assert "ended early" in captured.err
    with pytest.raises(type(end)):
        run()
    assert capsys.readouterr() == ("", "")


def test_a_step_says_how_far_the_bench_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(bench_report.time, "monotonic", lambda: now_s[0])
    running = report()
    running.begin("batch 1")
    now_s[0] += 65
    running.begin("batch 4")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "prefmix bench: batch 1 (step 1 of 4, 0:00 so far)"
    assert second == "prefmix bench: batch 4 (step 2 of 4, 1:05 so far, about 3:15 left)"
    assert [clock(seconds) for seconds in (0, 59.6, 3600)] == ["0:00", "1:00", "60:00"]
