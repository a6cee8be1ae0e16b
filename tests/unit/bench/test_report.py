"""The report's ratios are taken within a round; each table is followed by JSON lines."""

from __future__ import annotations

import json

import pytest

from prefmix.bench.report import Spread, show


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


def test_the_table_is_followed_by_one_json_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["what", "tokens/s"], ["one policy", "12.0"], ["mixture", "4.0"]]
    show("a heading", rows, num_left=1, lines=[{"speed": 12.0}, {"speed": 4.0}])
    heading, where, _, *table, _, first, second = capsys.readouterr().out.splitlines()
    assert heading == "a heading"
    assert "load average" in where
    assert "cores" in where or "GPU" in where
    assert table == ["what        tokens/s", "one policy      12.0", "mixture          4.0"]
    assert [json.loads(line)["speed"] for line in (first, second)] == [12.0, 4.0]
    about = json.loads(second)
    assert about["versions"]["prefmix"]
    assert about["versions"]["python"]
    assert about["machine"]["cores"] >= 1
    assert about["date"].endswith("+00:00")
