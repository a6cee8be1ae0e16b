"""Policies that come and go over the admin routes, in one API process and in two."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import prometheus_client
import pytest

from prefmix.server.admin.in_place import SlotsBusyError
from prefmix.server.admin.policy_changes import PolicyChanges
from prefmix.server.admin.slot_room import NoSlotsError
from prefmix.server.admin.two_phase_commit import CommitError
from prefmix.server.slots.engine_slots import PolicyRefusedError
from prefmix.server.slots.policies_folder import PoliciesFolder, PoliciesFolderError
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet
from prefmix.weights.store import edits
from prefmix.weights.store.added import AddedPolicy
from prefmix.weights.store.profiles import ProfileSet
from support.runtime.policies_server import ENGINE, SPEC, FakeSlots, Server, check_texts, write


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, FakeSlots())


def test_a_policy_comes_with_its_version_and_goes(server: Server, tmp_path: Path) -> None:
    came = server.ask("PUT", "/policies/new", write(tmp_path, "runs/new"))
    assert came.status_code == 200, came.text
    assert (came.json()["version"], came.json()["changed"]) == (2, True)
    assert server.names() == ("a", "new", "base")
    assert server.ask("PUT", "/policies/new", {"adapter": "runs/new"}).json()["changed"] is False
    listed = server.ask("GET", "/policies").json()
    assert listed["slots"] == {
        "total": 2,
        "free": 1,
        "total_without_kv": 0,
        "free_without_kv": 0,
        "max_rank": 8,
    }
    assert [(each["name"], each["added"]) for each in listed["policies"]] == [
        ("a", False),
        ("new", True),
        ("base", False),
    ]
    put = server.ask("PUT", "/profiles/both", {"weights": {"a": 1, "new": 1}})
    assert put.status_code == 200, put.text
    refused = server.ask("DELETE", "/policies/new")
    assert refused.status_code == 409
    assert "'new' has weight in both" in refused.json()["error"]["message"]
    assert server.ask("DELETE", "/profiles/both").status_code == 200
    assert server.ask("DELETE", "/policies/new").json()["version"] == 5
    assert server.names() == ("a", "base")
    assert server.ask("DELETE", "/policies/new").status_code == 404
    assert server.ask("DELETE", "/policies/a").status_code == 404


def test_a_replacement_takes_another_slot_than_what_requests_may_use(
    server: Server, tmp_path: Path
) -> None:
    server.ask("PUT", "/policies/new", write(tmp_path, "new"))
    before = server.current.current
    assert before.slots == {"new": 0}
    end = server.current.use(before.slots_of((0.0, 1.0, 0.0)))
    came = server.ask("PUT", "/policies/new", write(tmp_path, "new", b"2"))
    assert came.status_code == 200, came.text
    assert server.current.current.slots == {"new": 1}
    # The only other slot is one that a request still uses.
    busy = server.ask("PUT", "/policies/other", write(tmp_path, "other"))
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "5")
    assert "requests under way still use" in busy.json()["error"]["message"]
    assert server.names() == ("a", "new", "base")
    end()
    assert server.ask("PUT", "/policies/other", {"adapter": "other"}).status_code == 200
    assert server.current.current.slots == {"new": 1, "other": 0}
    full = server.ask("PUT", "/policies/new", write(tmp_path, "new", b"3"))
    assert full.status_code == 409
    assert "all 2 slots of this server hold policies" in full.json()["error"]["message"]
    third = server.ask("PUT", "/policies/third", write(tmp_path, "third"))
    assert (third.status_code, "3 added policies" in third.text) == (409, True)


def test_a_policy_waits_for_requests_that_end_soon(server: Server, tmp_path: Path) -> None:
    for name in ("new", "other"):
        server.ask("PUT", f"/policies/{name}", write(tmp_path, name))
    end = server.current.use(frozenset({0}))
    assert server.ask("DELETE", "/policies/new?drain=true").status_code == 200
    assert server.live.policies is not None
    server.live.policies._wait_s = 60.0

    async def tell_all(message: Any) -> None:
        assert message in ({"kind": "unnamed", "slot": 0}, {"kind": "unused", "slot": 0})

    async def come() -> PolicySet:
        assert server.live.policies is not None
        added = {**server.profiles.current.added}
        added["new"] = await server.live.policies.described("new")
        policies = server.live.policies

        async def provided() -> PolicySet:
            async with policies.provided(added, tell_all) as found:
                return found

        coming = asyncio.create_task(provided())
        await asyncio.sleep(0.2)
        assert not coming.done()
        end()
        return await coming

    assert asyncio.run(come()).slots == {"other": 1, "new": 0}


def test_a_refused_policy_changes_nothing(server: Server, tmp_path: Path) -> None:
    for body, status, words in (
        ({"model": "step-2"}, 409, "a running server takes no full checkpoint"),
        ({"model": "step-2", "system": "Be kind."}, 409, "start a server with it"),
        (write(tmp_path, "broken", b"bad"), 400, "its adapter is bad"),
        ({"adapter": "../w.json"}, 400, "no way out of it"),
        ({"adapter": "gone"}, 400, "has no such folder"),
        ({"adapter": "broken", "x": 1}, 400, "x"),
        ({}, 400, "adapter"),
    ):
        refused = server.ask("PUT", "/policies/new", body)
        assert refused.status_code == status, refused.text
        assert words in refused.json()["error"]["message"]
    named = server.ask("PUT", "/policies/a", write(tmp_path, "good"))
    assert (named.status_code, "one of the configuration" in named.text) == (400, True)
    stale = server.ask("PUT", "/policies/new", {"adapter": "good"}, **{"If-Match": '"7"'})
    assert stale.status_code == 412
    assert (server.names(), server.store.read().version) == (("a", "base"), 1)
    assert server.slots.puts == []


def test_an_adapters_tokenizer_is_checked_before_the_engine_reads_it(
    server: Server, tmp_path: Path
) -> None:
    checked: list[tuple[str, Path]] = []

    def check(name: str, folder: Path) -> None:
        checked.append((name, folder))
        raise PolicyRefusedError("policies 'base' and 'new' cannot be mixed")

    assert server.live.policies is not None
    server.live.policies._check_adapter = check
    body = write(tmp_path, "new")
    for query in ("?dry_run=true", ""):
        refused = server.ask("PUT", f"/policies/new{query}", body)
        assert (refused.status_code, "cannot be mixed" in refused.text) == (400, True)
    assert checked == [("new", tmp_path / "policies" / "new")] * 2
    assert (server.names(), server.slots.tried) == (("a", "base"), [])
    assert server.ask("PUT", "/policies/told", {"system": "Hi."}).status_code == 200
    (tmp_path / "policies" / "new" / "tokenizer.json").symlink_to("/etc/hostname")
    linked = server.ask("PUT", "/policies/new", body)
    assert (linked.status_code, "tokenizer.json is a link out" in linked.text) == (400, True)
    assert len(checked) == 2


def test_a_dry_run_lets_the_engine_read_and_puts_nothing(server: Server, tmp_path: Path) -> None:
    good = server.ask("PUT", "/policies/new?dry_run=true", write(tmp_path, "good"))
    assert (good.json()["changed"], good.json()["dry_run"]) == (True, True)
    assert server.slots.tried == ["new", "dropped"]
    bad = server.ask("PUT", "/policies/new?dry_run=true", write(tmp_path, "bad", b"bad"))
    assert bad.status_code == 400
    assert (server.names(), server.store.read().version) == (("a", "base"), 1)
    assert server.slots.content == [None, None]


def test_names_that_policies_may_have(server: Server, tmp_path: Path) -> None:
    body = write(tmp_path, "new")
    for name in ("all", "default", "custom", "null", "A" * 64):
        assert server.ask("PUT", f"/policies/{name}", body).status_code == 200
        listed = server.ask("GET", "/policies").json()["policies"]
        assert [each["name"] for each in listed] == ["a", name, "base"]
        assert server.ask("DELETE", f"/policies/{name}").status_code == 200
    for name, words in (
        *(("A" * 65, "1 to 64 letters"), ("é", "1 to 64 letters"), ("%00", "1 to 64 letters")),
        *(("%2e%2e", "1 to 64 letters"), ("a b", "1 to 64 letters"), ("base", "configuration")),
        ("adapter-slot-1", "has the name of a slot; choose another name"),
    ):
        refused = server.ask("PUT", f"/policies/{name}", body)
        assert (refused.status_code, words in refused.json()["error"]["message"]) == (400, True)
    assert server.slots.content[1] is None


def test_a_dry_run_says_that_no_slot_is_free(server: Server, tmp_path: Path) -> None:
    for name in ("new", "other"):
        server.ask("PUT", f"/policies/{name}", write(tmp_path, name))
    body = write(tmp_path, "third", b"3")
    for query in ("?dry_run=true", ""):
        for name, words in (("third", "3 added policies"), ("new", "all 2 slots of this server")):
            full = server.ask("PUT", f"/policies/{name}{query}", body)
            assert (full.status_code, words in full.text) == (409, True), full.text


def test_an_adapter_that_changes_while_it_is_read_is_in_no_slot(
    server: Server, tmp_path: Path
) -> None:
    body = write(tmp_path, "new")
    server.slots.after_put = lambda: write(tmp_path, "new", b"2")
    refused = server.ask("PUT", "/policies/new", body)
    assert refused.status_code == 400
    assert "other files than when it was added" in refused.json()["error"]["message"]
    assert (server.names(), server.store.read().version) == (("a", "base"), 1)
    assert server.slots.content == [None, None], "nobody takes it for the first file's"


def test_a_policy_that_requests_use_goes_with_drain_only(server: Server, tmp_path: Path) -> None:
    server.ask("PUT", "/policies/new", write(tmp_path, "new"))
    end = server.current.use(frozenset({0}))
    refused = server.ask("DELETE", "/policies/new")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert "drain=true" in refused.json()["error"]["message"]
    assert server.ask("DELETE", "/policies/new?drain=true").status_code == 200
    assert server.names() == ("a", "base")
    end()


def test_each_refusal_is_in_the_audit_log(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that is found before the change has its turn; a dry run is no change."""
    caplog.set_level(logging.WARNING, logger="prefmix.audit")
    server.ask("PUT", "/policies/new", write(tmp_path, "new"))
    end = server.current.use(frozenset({0}))
    for method, path, body in (
        ("PUT", "/policies/gone", {"adapter": "gone"}),
        ("PUT", "/policies/new", {"adapter": "../out"}),
        ("PUT", "/policies/full", {"model": "new"}),
        ("DELETE", "/policies/new", None),
        ("DELETE", "/policies/unknown", None),
    ):
        for query in ("?dry_run=true", ""):
            caplog.clear()
            refused = server.ask(method, path + query, body)
            assert refused.status_code >= 400
            did = f"{method.lower()}-policy:{path.rpartition('/')[2]}"
            reason = json.dumps(refused.json()["error"]["message"])
            expected = [] if query else [f"by=ops did={did} refused: {reason}"]
            assert caplog.messages == expected, (method, path)
    end()


def test_a_name_with_a_slash_is_refused_as_a_name(server: Server, tmp_path: Path) -> None:
    """An escaped slash reaches the router as a slash, and is still a part of a name."""
    body = write(tmp_path, "new")
    for name, seen in (("a%2Fb", "a/b"), ("a%2fb%2F", "a/b/"), ("", ""), ("%2F..", "/..")):
        refused = server.ask("PUT", f"/policies/{name}", body)
        message = refused.json()["error"]["message"]
        assert (refused.status_code, f"policy name {seen!r} is not allowed" in message) == (
            400,
            True,
        ), message
        gone = server.ask("DELETE", f"/policies/{name}")
        assert (gone.status_code, f"policy {seen!r} does not exist" in gone.text) == (404, True)
    profile = server.ask("PUT", "/profiles/a%2Fb", {"weights": {"a": 1}})
    assert (profile.status_code, "profile name 'a/b'" in profile.text) == (400, True), profile.text
    assert server.store.read().version == 1


def test_a_rollback_brings_a_versions_policies_back(server: Server, tmp_path: Path) -> None:
    server.ask("PUT", "/policies/new", write(tmp_path, "new"))
    server.ask("PUT", "/profiles/own", {"weights": {"new": 1}})
    server.ask("POST", "/weights/rollback", {"version": 1})
    assert server.names() == ("a", "base")
    back = server.ask("POST", "/weights/rollback", {"version": 3})
    assert back.status_code == 200, back.text
    assert server.names() == ("a", "new", "base")
    assert server.profiles.current.weights("own")["new"] == 1
    # Its files are others now, so the version cannot be had again.
    server.ask("POST", "/weights/rollback", {"version": 1})
    write(tmp_path, "new", b"2")
    lost = server.ask("POST", "/weights/rollback", {"version": 3})
    assert (lost.status_code, "other files than when it was added" in lost.text) == (400, True)
    assert server.names() == ("a", "base")


def test_a_server_starts_again_with_the_same_policies(server: Server, tmp_path: Path) -> None:
    for name in ("new", "newer"):
        server.ask("PUT", f"/policies/{name}", write(tmp_path, name))
    server.ask("DELETE", "/policies/new")
    again = Server(tmp_path, FakeSlots())
    asyncio.run(again.live.restore_policies())
    assert again.names() == ("a", "newer", "base")
    assert again.slots.puts == [(0, "newer")]
    # A second API process finds it in the engine.
    other = Server(tmp_path, again.slots)
    asyncio.run(other.live.restore_policies())
    assert (other.names(), again.slots.puts) == (again.names(), [(0, "newer")])
    write(tmp_path, "newer", b"2")
    with pytest.raises(PoliciesFolderError, match="put those files back"):
        asyncio.run(Server(tmp_path, FakeSlots()).live.restore_policies())


def test_a_change_is_in_all_processes_or_in_none(tmp_path: Path) -> None:
    slots = FakeSlots()
    first, second = (Server(tmp_path, slots, of=2, name=name) for name in ("one", "two"))

    def edit(name: str, folder: str) -> Any:
        policy = PoliciesFolder(tmp_path / "policies").adapter(folder)
        return lambda current: edits.with_policy(current, name, policy, spec=SPEC)

    async def changed(server: Server, change: Any) -> ProfileSet:
        return (await server.live.change(change, who="ops", what="test")).after

    async def run() -> None:
        await first.live.start()
        write(tmp_path, "new")
        with pytest.raises(CommitError, match="1 of 2 API processes are up"):
            await changed(first, edit("new", "new"))
        assert first.names() == ("a", "base")
        await second.live.start()
        await changed(first, edit("new", "new"))
        assert first.names() == second.names() == ("a", "new", "base")
        assert first.current.current.slots == second.current.current.slots
        # A slot that a request of the other process uses is not given away.
        end = second.current.use(second.current.current.slots_of((0, 1, 0)))
        write(tmp_path, "new", b"2")
        await changed(first, edit("new", "new"))
        write(tmp_path, "other")
        with pytest.raises(SlotsBusyError):
            await changed(first, edit("other", "other"))
        end()
        await changed(second, edit("other", "other"))
        assert first.current.current.slots == second.current.current.slots == {"new": 1, "other": 0}

    try:
        asyncio.run(run())
    finally:
        first.live.close()
        second.live.close()


def test_a_process_that_missed_a_change_follows_and_loses_no_slot(tmp_path: Path) -> None:
    """Neither process puts anything where the other has a policy that requests may name."""
    slots = FakeSlots()
    first, second = (Server(tmp_path, slots, of=2, name=name) for name in ("one", "two"))

    async def put(server: Server, name: str, content: bytes) -> None:
        write(tmp_path, name, content)
        policy = PoliciesFolder(tmp_path / "policies").adapter(name)
        await server.live.change(
            lambda current: edits.with_policy(current, name, policy, spec=SPEC),
            who="ops",
            what="test",
        )

    async def run() -> None:
        for server in (first, second):
            await server.live.start()
        await put(first, "new", b"1")
        missed, second.live._in_force.put = second.live._in_force.put, lambda coming: None
        await put(first, "new", b"2")
        second.live._in_force.put = missed
        assert (first.current.current.slots, second.current.current.slots) == (
            {"new": 1},
            {"new": 0},
        )
        # The slot that the first has left is still the other's.
        with pytest.raises(SlotsBusyError):
            await put(first, "other", b"3")
        assert slots.content[0] == second.profiles.current.added["new"].sha256
        await second.live.reload(who="file-watch", trigger="watch")
        assert first.current.current.slots == second.current.current.slots == {"new": 1}
        assert slots.puts == [(0, "new"), (1, "new")], "it was there already"
        await put(second, "other", b"3")
        assert first.current.current.slots == second.current.current.slots == {"new": 1, "other": 0}

    try:
        asyncio.run(run())
    finally:
        first.live.close()
        second.live.close()


def test_a_server_without_slots_takes_no_policies(tmp_path: Path) -> None:
    server = Server(tmp_path, FakeSlots())
    server.live.policies = PolicyChanges(
        CurrentPolicies(PolicySet.of(SPEC)),
        server.slots,  # type: ignore[arg-type]
        None,
        check_texts=check_texts,
    )
    refused = server.ask("PUT", "/policies/new", write(tmp_path, "new"))
    assert refused.status_code == 409
    assert "--adapter-slots N and --policies-dir FOLDER" in refused.json()["error"]["message"]
    assert server.ask("GET", "/policies").json()["slots"]["total"] == 0
    added = dict.fromkeys("xy", AddedPolicy(adapter="x", sha256="0" * 64))
    with pytest.raises(NoSlotsError, match="2 added policies, and this server 0 slots"):
        asyncio.run(server.live.policies.restore(added))


def test_a_policy_gets_a_slot_of_the_kind_that_it_asks_for(tmp_path: Path) -> None:
    slots = FakeSlots(replace(ENGINE, adapter_slots=3, slots_without_kv=2))
    server = Server(tmp_path, slots)
    folder = write(tmp_path, "new")
    assert server.ask("PUT", "/policies/plain", folder).status_code == 200
    assert server.ask("PUT", "/policies/mean", {**folder, "kv_cache": False}).status_code == 200
    assert slots.puts == [(0, "plain"), (1, "mean")]
    listed = server.ask("GET", "/policies").json()
    assert {each["name"]: each["kv_cache"] for each in listed["policies"]} == {
        "a": True,
        "plain": True,
        "mean": False,
        "base": True,
    }
    assert (listed["slots"]["free"], listed["slots"]["free_without_kv"]) == (1, 1)
    refused = server.ask("PUT", "/policies/told", {"system": "Be brief.", "kv_cache": False})
    assert refused.status_code == 400
    assert "needs a KV cache" in refused.json()["error"]["message"]
    refused = server.ask("PUT", "/policies/more", {**folder, "kv_cache": True})
    assert refused.status_code == 409
    assert "--adapter-slots 4 --adapter-slots-without-kv 2" in refused.json()["error"]["message"]
    assert "remove one with a KV cache, or start" in refused.json()["error"]["message"]
    # A replacement needs a free slot of its kind, also where there are free ones of the other.
    refused = server.ask("PUT", "/policies/plain", write(tmp_path, "later", b"2"))
    assert (
        "the one slot with a KV cache of this server holds a policy"
        in refused.json()["error"]["message"]
    )
    put = server.ask("PUT", "/profiles/both", {"weights": {"a": 1, "mean": 1}})
    assert put.status_code == 400
    assert "no KV cache and no logits" in put.json()["error"]["message"]
    body = {"weights": {"a": 1, "mean": 1}, "mixing": "parameters"}
    assert server.ask("PUT", "/profiles/both", body).status_code == 200
    # A server that starts again gives each the same kind.
    again = Server(tmp_path, FakeSlots(slots.engine))
    asyncio.run(again.live.restore_policies())
    assert again.current.current.slots == {"plain": 0, "mean": 1}
    assert again.current.current.placed((0.1, 0.2, 0.3, 0.4)) == (0.1, 0.4, 0.2, 0.3, 0.0)


def test_no_removal_makes_room_of_a_kind_that_a_server_has_not(tmp_path: Path) -> None:
    server = Server(tmp_path, FakeSlots())
    body = {**write(tmp_path, "new"), "kv_cache": False}
    refused = server.ask("PUT", "/policies/new", body)
    assert refused.status_code == 409
    message = refused.json()["error"]["message"]
    assert "slots, 1 of them without KV cache, and this server has 2 slots, none of" in message
    assert "remove" not in message


def test_where_no_slot_has_a_kv_cache_none_is_asked_for(tmp_path: Path) -> None:
    slots = FakeSlots(replace(ENGINE, slots_without_kv=2))
    server = Server(tmp_path, slots)
    assert server.ask("PUT", "/policies/mean", write(tmp_path, "new")).status_code == 200
    assert server.ask("GET", "/policies").json()["policies"][1]["kv_cache"] is False


def count(trigger: str, result: str) -> float:
    labels = {"trigger": trigger, "result": result}
    name = "prefmix_policy_changes_total"
    return prometheus_client.REGISTRY.get_sample_value(name, labels) or 0.0


def test_changes_are_counted_by_how_they_end(server: Server, tmp_path: Path) -> None:
    """A refusal of what came is not a conflict with what is under way; a dry run is no change."""
    bad, good = write(tmp_path, "bad", b"bad"), write(tmp_path, "good")
    steps: list[tuple[str, str, Any, dict[str, str], str | None]] = [
        ("PUT", "/policies/new?dry_run=true", bad, {}, None),
        ("PUT", "/policies/new", bad, {}, "refused"),
        ("PUT", "/policies/new", {"adapter": "gone"}, {}, "refused"),
        ("PUT", "/policies/new", good, {"If-Match": '"7"'}, "conflict"),
        ("PUT", "/policies/new", good, {}, "ok"),
        ("PUT", "/policies/new", good, {}, "unchanged"),
        ("DELETE", "/policies/none", None, {}, "refused"),
        ("DELETE", "/policies/new?dry_run=true", None, {}, None),
        ("DELETE", "/policies/new", None, {}, "ok"),
    ]
    results = ("ok", "unchanged", "refused", "conflict")
    for method, path, body, headers, result in steps:
        before = {each: count(method.lower(), each) for each in results}
        server.ask(method, path, body, **headers)
        after = {each: count(method.lower(), each) for each in results}
        assert {each for each in results if after[each] > before[each]} == {result} - {None}
        assert sum(after.values()) - sum(before.values()) == (result is not None)
