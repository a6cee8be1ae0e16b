"""A JSON body is read within limits; names that come twice are known; half pairs are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefmix.server.http.errors import RequestError
from prefmix.server.http.request_json import (
    MAX_DEPTH,
    MAX_NUMBERS,
    MAX_VALUES,
    RepeatedNames,
    read_json,
    refuse_repeated_names,
)


@pytest.mark.parametrize(
    "body", [rb'{"stop": ["\udfff"]}', rb'{"a": {"\uD800": 1}}', rb'["\ud83d x \ude00"]']
)
def test_half_a_surrogate_pair_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError, match="half a surrogate pair"):
        read_json(body)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (rb'{"a": "\ud83d\ude00"}', {"a": "\U0001f600"}),
        (rb'{"a": "\\ud800"}', {"a": "\\ud800"}),
        ('{"a": "é"}'.encode("utf-16"), {"a": "é"}),
        (b"[1, -2.5, NaN, null]", json.loads("[1, -2.5, null, null]")),
    ],
)
def test_other_documents_are_read(body: bytes, value: Any) -> None:
    found = read_json(body)
    if isinstance(found, list):
        found[2] = None
    assert found == value


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (rb'{"a": "\ud800', "not valid JSON: Invalid .* at character 8"),
        (rb'{"a": "b', "not valid JSON: Unterminated string starting at character 6"),
        (b"", "not valid JSON"),
        (b"\xff", "cannot be read as JSON: 'utf-8'"),
        (b"[" * 10**5, "nested more than 128 levels"),
        (b'{"a":' * 10**5, "nested more than 128 levels"),
        (b'"\\ud800\\udc00"\xff', "cannot be read as JSON"),
        (b'"' + b'\\"' * 10**6, "Unterminated string"),
    ],
)
def test_what_is_no_json_is_refused_in_a_sentence(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_json(body)


@pytest.mark.parametrize("value", ["[]", "{}", '""', '"a,b"', r'"\""', r'"\\"', '"[{,"'])
def test_values_are_counted_up_to_the_limit_and_not_inside_strings(value: str) -> None:
    fits = ",".join([value] * (MAX_VALUES - 1))
    assert len(read_json(f"[{fits}]".encode())) == MAX_VALUES - 1
    with pytest.raises(RequestError, match=rf"more than {MAX_VALUES} strings, lists and objects"):
        read_json(f"[{fits},{value}]".encode())


def test_numbers_are_counted_by_themselves() -> None:
    fits = ",".join(["7"] * MAX_NUMBERS)
    assert len(read_json(f"[{fits}]".encode())) == MAX_NUMBERS
    with pytest.raises(RequestError, match=f"more than {MAX_NUMBERS} values"):
        read_json(f"[{fits},7]".encode())
    text = "a, " * MAX_NUMBERS
    assert read_json(json.dumps(text).encode()) == text


def test_depth_is_that_of_the_deepest_value() -> None:
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    read_json(deep.encode())
    read_json(f"[{deep[1:-1]},{deep[1:-1]}]".encode())
    with pytest.raises(RequestError, match="levels deep"):
        read_json(f"[{deep}]".encode())
    read_json(json.dumps(["[" * 1000]).encode())


def test_names_that_come_twice_are_known_at_any_depth() -> None:
    value = read_json(b'{"a": 1, "b": {"c": 1, "d": 2, "c": 3}, "e": [{"f": 1}]}')
    assert value == {"a": 1, "b": {"c": 3, "d": 2}, "e": [{"f": 1}]}
    assert not isinstance(value, RepeatedNames)
    assert value["b"].names == ("c",)
    with pytest.raises(RequestError, match="names 'c' more than once"):
        refuse_repeated_names(value)
    refuse_repeated_names(read_json(b'{"a": [{"a": {"a": 1}}], "b": 1}'))
