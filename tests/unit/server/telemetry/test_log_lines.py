"""A client cannot forge a line of a log, or a field of one."""

from __future__ import annotations

import json
import logging

import pytest

from prefmix.server.telemetry import audit_log, request_log
from prefmix.server.telemetry.audit_log import one_word
from prefmix.weights.store.change import Change
from prefmix.weights.store.profiles import ProfileSet

HOSTILE = [
    "x\nprefmix audit: by=admin did=put:evil applied",
    "x\r\n2026-01-01 forged",
    "x outcome=ok status=200",
    'x" y',
    "\x1b[2Jx",
    "x\x9b31m",
    "x\u2028y",
    "x\x85y",
    "",
    "a=b",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_value_stays_one_value(text: str) -> None:
    word = one_word(text)
    assert word.isascii()
    assert word.isprintable()
    assert json.loads(word) == text


@pytest.mark.parametrize("text", ["put:terse", "req-1_a.b/c", "0.25", "/v1/completions"])
def test_plain_values_stay_as_they_are(text: str) -> None:
    assert one_word(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_refused_change_is_one_line_of_audit(
    text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    audit_log.set_up()
    audit_log.refused("ops", f"put:{text:.64}", text)
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert err.removesuffix("\n").isprintable()
    audit_log.login_failed("key", text, 3)
    said = capfd.readouterr().err.split("now from ", 1)[1]
    assert said == one_word(text) + "\n"
    assert err.split("audit: ", 1)[1].startswith(("by=ops did=put:", 'by=ops did="put:'))


@pytest.mark.parametrize("text", HOSTILE)
def test_with_a_request_log_of_json_the_audit_log_is_json(
    text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = ProfileSet(member_names=("a",), profiles={"x": (1.0,)}, default="x", version=3)
    after = ProfileSet(member_names=("a",), profiles={"y": (1.0,)}, default="y", version=4)
    change = Change(before=before, after=after)
    audit_log.set_up(is_json=True)
    try:
        audit_log.changed("ops", text, change)
        audit_log.refused("ops", "put:x", text)
        audit_log.login_failed("key", text, 3)
    finally:
        audit_log.set_up()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line.pop("logger") for line in lines] == ["prefmix.audit"] * 3
    assert all(line.pop("time").endswith("Z") for line in lines)
    assert lines[0].pop("old").startswith("3:")
    assert lines[0].pop("new").startswith("4:")
    assert lines == [
        {"by": "ops", "did": text, "result": "applied"},
        {"by": "ops", "did": "put:x", "result": "refused", "reason": text},
        {"login_failed": "key", "count": 3, "client": text},
    ]


@pytest.mark.parametrize("chosen", ["text", "json"])
@pytest.mark.parametrize("text", HOSTILE)
def test_a_request_is_one_line_of_the_request_log(
    text: str, chosen: request_log.RequestLog, capfd: pytest.CaptureFixture[str]
) -> None:
    request_log.set_up(chosen)
    request_log.write(request_id=text, status=200, outcome="ok")
    request_log.set_up("off")
    logging.getLogger("prefmix.requests").handlers = []
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert err.removesuffix("\n").isprintable()
    if chosen == "json":
        assert json.loads(err)["request_id"] == text
    else:
        fields = err.split("prefmix request: ")[1]
        assert fields.rstrip().endswith(" status=200 outcome=ok")
