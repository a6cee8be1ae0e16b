"""`prefmix policies`: what it asks a server, and what it prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prefmix.server.cli.main import main
from prefmix.server.cli.weights_server import ServerTarget

URL = ("--url", "http://127.0.0.1:8000")
LISTED = {
    "version": 4,
    "sha256": "ab" * 32,
    "slots": {"total": 2, "free": 1, "max_rank": 16},
    "policies": [
        {"name": "own", "added": False},
        {"name": "fresh", "added": True, "adapter": "runs/400", "sha256": "0" * 64},
    ],
}
CHANGED = {
    "previous_version": 4,
    "version": 5,
    "sha256": "cd" * 32,
    "previous_sha256": "ab" * 32,
    "changed": True,
    "dry_run": False,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str, Any]]]:
    """asked(answer) -> the requests that come from then on: method, path, body."""
    monkeypatch.setenv("PREFMIX_ADMIN_TOKEN", "secret")

    def answering(answer: dict[str, Any]) -> list[tuple[str, str, Any]]:
        found: list[tuple[str, str, Any]] = []

        def ask(
            self: ServerTarget, method: str, path: str, body: Any = None, precondition: Any = None
        ) -> dict[str, Any]:
            found.append((method, path, body))
            return answer

        monkeypatch.setattr(ServerTarget, "_ask", ask)
        return found

    return answering


def test_the_list_says_where_each_policy_is_from(
    asked: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = asked(LISTED)
    assert main(["policies", "list", *URL]) == 0
    assert found == [("GET", "/admin/policies", None)]
    assert capsys.readouterr().out.splitlines() == [
        "version 4, 1 of 2 slots free, for adapters up to rank 16",
        "own    of the configuration",
        "fresh  runs/400",
    ]


def test_policies_are_added_and_removed(asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(CHANGED)
    assert main(["policies", "add", "fresh", "runs/400", *URL, "--dry-run"]) == 0
    assert main(["policies", "remove", "fresh", *URL]) == 0
    assert main(["policies", "remove", "a/b", "--drain", *URL]) == 0
    assert found == [
        ("PUT", "/admin/policies/fresh?dry_run=true", {"adapter": "runs/400"}),
        ("DELETE", "/admin/policies/fresh", None),
        ("DELETE", "/admin/policies/a%2Fb?drain=true", None),
    ]
    out = capsys.readouterr().out
    assert "valid: would become version 5" in out
    assert "version 4 -> 5, sha256 cdcdcdcdcdcd" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list"], "give --url URL"),
        (["list", *URL, "--", "x"], "takes nothing after '--'"),
        (["list", "--url", "nowhere"], "--url is 'nowhere'"),
    ],
)
def test_wrong_words_are_refused(
    asked: Any, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    found = asked(LISTED)
    assert main(["policies", *words]) != 0
    assert message in capsys.readouterr().err
    assert found == []


def test_an_answer_of_another_server_is_no_list(
    asked: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked({"object": "list"})
    assert main(["policies", "list", *URL]) == 1
    assert "no answer of a prefmix server" in capsys.readouterr().err
