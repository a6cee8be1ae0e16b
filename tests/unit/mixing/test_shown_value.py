"""Messages repeat a value as its sender spelled it, and not more of it than can be read."""

from __future__ import annotations

import datetime
import itertools
import json
from typing import Any

import pytest

from prefmix.mixing.shown_value import MAX_CHARS, shown, shown_bytes


@pytest.mark.parametrize(
    "value",
    [None, True, False, 0, -2.5, 1e300, {"a": None, "b": [True, "x", "ü"]}, [], {}, [[{}]]],
)
def test_values_are_spelled_as_json(value: Any) -> None:
    assert shown(value) == json.dumps(value, ensure_ascii=False)


def test_numbers_that_json_does_not_have_are_spelled_as_its_readers_do() -> None:
    assert [shown(float(text)) for text in ("nan", "inf", "-inf")] == [
        "NaN",
        "Infinity",
        "-Infinity",
    ]
    assert shown({"a": float("inf")}) == '{"a": Infinity}'


def test_a_string_alone_is_quoted_like_a_name() -> None:
    assert shown("careful") == "'careful'"
    assert shown("a\nb\x1b") == r"'a\nb\x1b'"


def test_what_would_change_the_line_that_shows_it_is_escaped() -> None:
    assert shown({"\u202e": "\ud800\n"}) == r'{"\u202e": "\ud800\n"}'


def test_what_json_does_not_have_is_spelled_as_in_python() -> None:
    day = datetime.date(2026, 11, 22)
    assert shown(day) == "datetime.date(2026, 11, 22)"
    assert shown({"day": day}) == '{"day": "datetime.date(2026, 11, 22)"}'
    assert shown({day: 1}) == "{datetime.date(2026, 11, 22): 1}"


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, "\n" * 10_000, list(range(10_000)), 10**5000, {"k": "v" * 999}, [10**5000]],
    ids=["text", "escapes", "list", "number", "object", "number in a list"],
)
def test_values_are_cut(value: Any) -> None:
    assert len(shown(value)) <= MAX_CHARS + 3
    assert len(shown(value, 20)) <= 30


def test_a_value_without_end_is_cut() -> None:
    """Values of the Python interface may contain themselves, or be nested without end."""
    endless: list[Any] = []
    endless.append(endless)
    assert shown(endless) == "[" * (MAX_CHARS) + "..."
    deep: Any = 0
    for _ in itertools.repeat(None, 100_000):
        deep = [deep]
    assert shown(deep).endswith("[...")


def test_sizes_have_a_unit_in_which_they_can_be_read() -> None:
    told = [shown_bytes(count) for count in (0, 999, 1000, 49_152, 1.3e6, 7.6e10)]
    assert told == ["0 bytes", "999 bytes", "1.0 kB", "49.2 kB", "1.3 MB", "76.0 GB"]
