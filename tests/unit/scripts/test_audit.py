"""`make audit` finds doubtful licences and known vulnerabilities."""

from __future__ import annotations

import tomllib
from email.message import Message

import pytest

from scripts import audit, licences

ACCEPTED = tomllib.loads(licences.ACCEPTED.read_text(encoding="utf-8"))


def metadata(**fields: str | list[str]) -> Message:
    message = Message()
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"License_Expression": "MIT"}, None),
        ({"License_Expression": "Apache-2.0 WITH LLVM-exception AND BSD-3-Clause"}, None),
        ({"License_Expression": "MIT OR GPL-3.0-only"}, None),
        ({"License_Expression": "GPL-2.0-only OR GPL-3.0-only"}, "copyleft"),
        ({"License_Expression": "MIT AND LGPL-2.1-only"}, "copyleft"),
        ({"License": "AGPLv3"}, "copyleft"),
        (
            {"Classifier": "License :: OSI Approved :: GNU Affero General Public License v3"},
            "copyleft",
        ),
        (
            {"Classifier": "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)"},
            "copyleft",
        ),
        ({"Classifier": "License :: OSI Approved :: BSD License"}, None),
        (
            {"Classifier": ["License :: OSI Approved", "License :: OSI Approved :: MIT License"]},
            None,
        ),
        ({"Classifier": "License :: OSI Approved"}, "unknown"),
        ({"Classifier": "License :: Other/Proprietary License"}, "proprietary"),
        ({"License": "MIT License\n\nPermission is hereby granted"}, None),
        ({"License": "NVIDIA Proprietary Software"}, "proprietary"),
        ({}, "unknown"),
    ],
)
def test_licences_that_someone_has_to_look_at(fields: dict[str, str], why: str | None) -> None:
    assert licences.doubt(licences.licence_of(metadata(**fields))) == why


def test_a_doubtful_licence_needs_a_reason() -> None:
    found = {"Good": "MIT", "Bad": "GPL-3.0-only", "nvidia-cublas": "NVIDIA Proprietary", "New": ""}
    lines = licences.unaccepted(found, ACCEPTED["licences"])
    assert [line.split(":")[0] for line in lines] == ["Bad", "New"]
    assert licences.unaccepted(found, ["bad", "n*"]) == []


def test_every_exception_has_a_reason() -> None:
    for kind in ("licences", "vulnerabilities"):
        assert all(len(reason.split()) >= 3 for reason in ACCEPTED[kind].values())


REPORT = {
    "dependencies": [
        {"name": "good", "version": "1", "vulns": []},
        {
            "name": "bad",
            "version": "2",
            "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-9"], "fix_versions": ["2.1"]}],
        },
        {"name": "unknown", "skip_reason": "Dependency not found on PyPI"},
    ]
}


def test_vulnerabilities_are_found_and_what_was_not_looked_up_is_said() -> None:
    found, skipped = audit.problems(REPORT, [])
    assert found == ["bad 2: CVE-9, PYSEC-1; fixed in 2.1"]
    assert skipped == ["unknown"]
    assert audit.problems(REPORT, ["CVE-9"]) == ([], ["unknown"])


def test_a_database_that_cannot_be_asked_is_said_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mirror answers nothing for every package, which must not pass for a clean result."""
    monkeypatch.setattr(audit, "install", lambda: None)
    nothing = {"dependencies": [{"name": "pip", "skip_reason": "not found"}]}
    monkeypatch.setattr(audit, "audit", lambda pins: nothing)
    assert audit.main() == 0
    assert "NOT DONE" in capsys.readouterr().out

    def unreachable(pins: object) -> None:
        raise audit.UnavailableError("no route")

    monkeypatch.setattr(audit, "audit", unreachable)
    assert audit.main() == 0
    assert "NOT DONE" in capsys.readouterr().out


def test_a_vulnerability_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "install", lambda: None)
    known = {"dependencies": [{"name": "pip", "version": "1", "vulns": []}]}
    reports = iter([known, REPORT])
    monkeypatch.setattr(audit, "audit", lambda pins: next(reports))
    assert audit.main() == 1
    assert "CVE-9" in capsys.readouterr().err
