"""Policies that are prompts, or have one, over the admin routes of a running server."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from prefmix.server.admin.policy_changes import PolicyChanges
from prefmix.server.config.prompt_settings import PromptSettings
from prefmix.server.slots.engine_slots import PolicyRefusedError
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet
from prefmix.weights.store import edits
from prefmix.weights.store.added import AddedPolicy
from support.runtime.policies_server import ENGINE, SPEC, FakeSlots, Server, check_texts, write

KIND, BRIEF = {"system": "Be the kind secret."}, {"system": "Be the brief secret."}


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, FakeSlots())


def texts(server: Server) -> dict[str, str]:
    return dict(server.current.current.prompts.systems)


def test_a_prompt_comes_without_files_and_no_answer_shows_it(server: Server) -> None:
    came = server.ask("PUT", "/policies/kind", KIND)
    assert came.status_code == 200, came.text
    assert server.names() == ("a", "kind", "base")
    assert (texts(server), server.slots.puts) == ({"kind": KIND["system"]}, [])
    assert server.ask("PUT", "/policies/kind", KIND).json()["changed"] is False
    listed = server.ask("GET", "/policies")
    [_, own, _] = listed.json()["policies"]
    assert (own["added"], own["has_prompt"], len(own["system_sha256"])) == (True, True, 64)
    for path in ("/policies", "/weights", "/weights/history"):
        shown = server.ask("GET", path)
        assert own["system_sha256"] in shown.text
        assert "secret" not in shown.text
        if path == "/weights":
            assert shown.json()["sha256"] == server.profiles.current.sha256
    # The store's file alone has the text, from which a server starts again.
    assert KIND["system"] in server.store.path.read_text()
    assert server.ask("DELETE", "/policies/kind").status_code == 200
    assert (server.names(), texts(server)) == (("a", "base"), {})


def test_a_prompt_is_replaced_in_its_slot_while_requests_use_it(server: Server) -> None:
    """Requests carry their prompt with them, so what is in the slot stays right."""
    for name in ("kind", "brief"):
        assert server.ask("PUT", f"/policies/{name}", KIND).status_code == 200
    before = server.current.current
    end = server.current.use(frozenset({0, 1}))
    came = server.ask("PUT", "/policies/kind", BRIEF)
    assert came.status_code == 200, came.text
    assert server.current.current.slots == before.slots == {"kind": 0, "brief": 1}
    assert texts(server) == {"kind": BRIEF["system"], "brief": KIND["system"]}
    assert before.prompts.systems["kind"] == KIND["system"], "whoever was admitted keeps it"
    # So a prompt also comes at once where another has just gone.
    assert server.ask("DELETE", "/policies/kind?drain=true").status_code == 200
    assert server.ask("PUT", "/policies/third", KIND).status_code == 200
    assert server.current.current.slots == {"brief": 1, "third": 0}
    end()


def test_an_adapter_may_have_a_prompt(server: Server, tmp_path: Path) -> None:
    body = {**write(tmp_path, "new"), **KIND}
    assert server.ask("PUT", "/policies/new", body).status_code == 200
    [_, own, _] = server.ask("GET", "/policies").json()["policies"]
    assert (own["adapter"], own["has_prompt"]) == ("new", True)
    assert (server.slots.puts, texts(server)) == ([(0, "new")], {"new": KIND["system"]})
    assert server.ask("PUT", "/policies/new", {**body, **BRIEF}).status_code == 200
    assert (server.slots.puts, texts(server)) == ([(0, "new")], {"new": BRIEF["system"]})
    assert server.ask("PUT", "/policies/new", {"adapter": "new"}).status_code == 200
    assert (server.slots.puts, texts(server)) == ([(0, "new")], {})


def test_a_prompt_gets_the_base_where_an_adapter_was(server: Server, tmp_path: Path) -> None:
    for name in ("new", "newer"):
        server.ask("PUT", f"/policies/{name}", write(tmp_path, name))
    server.ask("DELETE", "/policies/new")
    end = server.current.use(frozenset({0}))
    busy = server.ask("PUT", "/policies/kind", KIND)
    assert (busy.status_code, server.slots.cleared) == (503, [])
    end()
    assert server.ask("PUT", "/policies/kind", KIND).status_code == 200
    assert (server.slots.cleared, server.slots.content[0]) == ([0], None)
    # An adapter in the place of a prompt needs a slot that no request uses.
    full = server.ask("PUT", "/policies/kind", {"adapter": "new"})
    assert (full.status_code, "hold policies" in full.text) == (409, True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"system": "refused secret"}, "has a system text that is refused"),
        ({"system": " \n"}, "system is empty; give it a text, or leave it out"),
        ({"system": ["secret"]}, "system is of type list, expected a text"),
        ({"system": "secret \ud800"}, "half a surrogate pair"),
        ({"system": "secret\x00"}, "system is a text with the control character U+0000"),
        ({}, "give adapter (a folder below the server's --policies-dir), system (a text), or both"),
        ({"adapter": None, "system": None}, "the body names no policy"),
        ({"adapter": "new", "system": "refused secret"}, "has a system text that is refused"),
    ],
)
def test_a_text_that_cannot_be_had_changes_nothing(
    server: Server, tmp_path: Path, body: dict[str, Any], words: str
) -> None:
    write(tmp_path, "new")
    for query in ("", "?dry_run=true"):
        refused = server.ask("PUT", f"/policies/kind{query}", body)
        assert refused.status_code == 400, refused.text
        assert words in refused.json()["error"]["message"]
        assert "secret" not in refused.text
    assert (server.names(), server.store.read().version) == (("a", "base"), 1)
    assert server.slots.puts == []


def test_a_dry_run_of_a_prompt_changes_nothing(server: Server) -> None:
    tried = server.ask("PUT", "/policies/kind?dry_run=true", KIND)
    assert (tried.json()["changed"], tried.json()["dry_run"]) == (True, True)
    assert (server.names(), texts(server), server.slots.tried) == (("a", "base"), {}, [])


def test_prompts_come_back_with_a_version_and_after_a_start(server: Server, tmp_path: Path) -> None:
    server.ask("PUT", "/policies/kind", KIND)
    server.ask("PUT", "/policies/kind", BRIEF)
    assert server.ask("POST", "/weights/rollback", {"version": 2}).status_code == 200
    assert texts(server) == {"kind": KIND["system"]}
    again = Server(tmp_path, FakeSlots())
    again.slots.content[0] = "of another process"
    asyncio.run(again.live.restore_policies())
    assert (again.names(), texts(again)) == (("a", "kind", "base"), {"kind": KIND["system"]})
    assert (again.slots.cleared, again.slots.puts) == ([0], [])
    # A text that the server's template has come to refuse ends the start.
    refused = AddedPolicy.of(system="refused")
    server.store.change(lambda old: edits.with_policy(old, "kind", refused, spec=SPEC))
    with pytest.raises(PolicyRefusedError, match="'kind' has a system text that is refused"):
        asyncio.run(Server(tmp_path, FakeSlots()).live.restore_policies())


def test_prompts_are_the_same_in_all_processes(tmp_path: Path) -> None:
    slots = FakeSlots()
    first, second = (Server(tmp_path, slots, of=2, name=name) for name in ("one", "two"))
    policy = AddedPolicy.of(system="x" * 200_000)

    async def run() -> None:
        await first.live.start()
        await second.live.start()
        await first.live.change(
            lambda current: edits.with_policy(current, "kind", policy, spec=SPEC),
            who="ops",
            what="test",
        )

    try:
        asyncio.run(run())
        assert texts(first) == texts(second) == {"kind": policy.system}
        assert first.current.current.slots == second.current.current.slots
    finally:
        first.live.close()
        second.live.close()


def test_an_engine_without_prompts_says_so(tmp_path: Path) -> None:
    server = Server(tmp_path, FakeSlots())
    for engine, words in (
        (dataclasses.replace(ENGINE, has_prompts=False), "with --no-slot-prompts"),
        (SPEC, "start it with --adapter-slots N"),
    ):
        server.live.policies = PolicyChanges(
            CurrentPolicies(PolicySet.of(engine)),
            server.slots,  # type: ignore[arg-type]
            None,
            check_texts=check_texts,
        )
        refused = server.ask("PUT", "/policies/kind", KIND)
        assert (refused.status_code, words in refused.text) == (409, True)


def test_texts_of_the_configuration_stay(tmp_path: Path) -> None:
    configured = PromptSettings(systems={"a": "Be a."}, request_prompts=True, max_own_tokens=9)
    start = PolicySet.of(ENGINE, prompts=configured)
    kind = AddedPolicy.of(system="Be kind.")
    more = start.with_added({"kind": kind}, {"kind": 1})
    assert more.prompts == dataclasses.replace(
        configured, systems={"a": "Be a.", "kind": "Be kind."}
    )
    assert more.with_added({}, {}) == start
    assert more.placed((0.25, 0.5, 0.25)) == (0.25, 0.25, 0.0, 0.5)
