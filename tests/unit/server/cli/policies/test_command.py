"""`prefmix policies`: what it asks a server, and what it prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefmix.server.cli.administration.server_target import (
    ANSWER_TIMEOUT_S,
    POLICIES_TIMEOUT_S,
    ServerTarget,
)
from prefmix.server.cli.main import main

URL = ("--url", "http://127.0.0.1:8000")
LISTED = {
    "version": 4,
    "sha256": "ab" * 32,
    "slots": {"total": 2, "free": 1, "max_rank": 16},
    "policies": [
        {"name": "own", "added": False},
        {"name": "fresh", "added": True, "adapter": "runs/400", "sha256": "0" * 64},
        {"name": "kind", "added": True, "has_prompt": True, "system_sha256": "1" * 64},
        {"name": "told", "added": False, "has_prompt": True},
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
        "kind   with a prompt",
        "told   of the configuration, with a prompt",
    ]


def test_the_list_tells_slots_without_kv_cache_apart(
    asked: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    slots = {**LISTED["slots"], "total_without_kv": 1, "free_without_kv": 0}
    policies = [{**each, "kv_cache": not each["added"]} for each in LISTED["policies"][:2]]
    asked({**LISTED, "slots": slots, "policies": policies})
    assert main(["policies", "list", *URL]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "version 4, 1 of 2 slots free (0 of them without KV cache), for adapters up to rank 16",
        "own    of the configuration",
        "fresh  runs/400, without KV cache: mixes parameters only",
    ]


def test_the_list_names_policies_that_are_not_served_now(
    asked: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = [{**each, "ready": each["name"] != "kind"} for each in LISTED["policies"]]
    asked({**LISTED, "policies": policies})
    assert main(["policies", "list", *URL]) == 0
    assert capsys.readouterr().out.splitlines()[2:4] == [
        "fresh  runs/400",
        "kind   with a prompt, not served now",
    ]


def test_the_list_says_where_a_manifest_decides(
    asked: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked({**LISTED, "manifest": "/etc/policies.yaml"})
    assert main(["policies", "list", *URL]) == 0
    said = capsys.readouterr().out.splitlines()[1]
    assert said == "added by the manifest /etc/policies.yaml, and by no request"


def test_a_change_names_the_profiles_that_wait_for_policies(
    asked: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked({**CHANGED, "dormant": {"calm": ["fresh", "slow"]}})
    assert main(["policies", "remove", "fresh", *URL]) == 0
    assert "profile 'calm' is dormant: it waits for fresh, slow" in capsys.readouterr().out


def test_policies_are_added_and_removed(asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(CHANGED)
    assert main(["policies", "add", "fresh", "runs/400", *URL, "--dry-run"]) == 0
    assert main(["policies", "add", "fresh", "runs/400", *URL, "--without-kv"]) == 0
    assert main(["policies", "add", "fresh", "runs/500", "--drain", *URL]) == 0
    assert main(["policies", "remove", "fresh", *URL]) == 0
    assert main(["policies", "remove", "a/b", "--drain", *URL]) == 0
    assert found == [
        ("PUT", "/admin/policies/fresh?dry_run=true", {"adapter": "runs/400"}),
        ("PUT", "/admin/policies/fresh", {"adapter": "runs/400", "kv_cache": False}),
        ("PUT", "/admin/policies/fresh?drain=true", {"adapter": "runs/500"}),
        ("DELETE", "/admin/policies/fresh", None),
        ("DELETE", "/admin/policies/a%2Fb?drain=true", None),
    ]
    out = capsys.readouterr().out
    assert "valid: would become version 5" in out
    assert "version 4 -> 5, sha256 cdcdcdcdcdcd" in out


def test_a_rollback_waits_for_requests_on_demand(asked: Any) -> None:
    found = asked(CHANGED)
    assert main(["weights", "rollback", "3", "--drain", *URL]) == 0
    assert main(["weights", "rollback", "--drain", "--dry-run", *URL]) == 0
    assert main(["weights", "rollback", *URL]) == 0
    path = "/admin/weights/rollback"
    assert found == [
        ("POST", f"{path}?drain=true", {"version": 3}),
        ("POST", f"{path}?drain=true&dry_run=true", {}),
        ("POST", path, {}),
    ]


def test_what_may_read_adapters_is_waited_for(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large adapter takes minutes to be read, and a client that leaves does not stop it."""
    asked(CHANGED)
    ask, waits = ServerTarget._ask, []

    def timed(self: ServerTarget, *args: Any) -> dict[str, Any]:
        waits.append(self._timeout_s)
        return ask(self, *args)

    monkeypatch.setattr(ServerTarget, "_ask", timed)
    for words in (
        ["policies", "add", "x", "x"],
        ["weights", "rollback"],
        ["weights", "delete", "x"],
    ):
        assert main([*words, *URL]) == 0
    assert waits == [POLICIES_TIMEOUT_S, POLICIES_TIMEOUT_S, ANSWER_TIMEOUT_S]


def test_a_prompt_is_a_text_or_a_file(
    asked: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = asked(CHANGED)
    file = tmp_path / "brief.txt"
    file.write_text("Be brief.\n")
    assert main(["policies", "add", "kind", "--system", "Be kind.", *URL]) == 0
    assert main(["policies", "add", "brief", "runs/400", "--system", f"@{file}", *URL]) == 0
    assert [body for _, _, body in found] == [
        {"system": "Be kind."},
        {"adapter": "runs/400", "system": "Be brief."},
    ]
    assert main(["policies", "add", "kind", "--system", "@/nowhere", *URL]) == 2
    assert "--system: cannot read /nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "kind", *URL], "give the adapter's FOLDER, --system TEXT, or both"),
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


@pytest.mark.parametrize("action", ["add", "remove"])
def test_the_name_of_a_policy_is_described(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["policies", action, "--help"])
    assert "POLICY the policy's name" in " ".join(capsys.readouterr().out.split())
