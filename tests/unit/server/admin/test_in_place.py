"""Policies that are replaced in their own slots, where no other is free."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from prefmix.server.admin.in_place import SlotsBusyError
from prefmix.server.admin.two_phase_commit import CommitError
from prefmix.server.slots.engine_slots import PolicyRefusedError
from prefmix.server.slots.policies_folder import PoliciesFolder
from prefmix.weights.store import edits
from prefmix.weights.store.errors import StoreFullError
from prefmix.weights.store.profiles import ProfileSet
from support.runtime.policies_server import ENGINE, SPEC, FakeSlots, Server, write

OLD = frozenset({0})
"""The slot of the policy `new`."""


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """All slots hold policies."""
    return filled(Server(tmp_path, FakeSlots()), tmp_path)


def filled(server: Server, folder: Path) -> Server:
    for name in ("new", "other"):
        came = server.ask("PUT", f"/policies/{name}", write(folder, name, name.encode()))
        assert came.status_code == 200, came.text
    return server


def replaced(
    server: Server, folder: Path, query: str = "?drain=true", content: bytes = b"2"
) -> Any:
    return server.ask("PUT", f"/policies/new{query}", write(folder, "new", content))


def is_as_before(server: Server, content: list[str | None]) -> bool:
    current = server.current
    return (
        server.slots.content == content
        and current.held_name(OLD) is None
        and current.current.slots == {"new": 0, "other": 1}
        and server.profiles.current.version == server.store.read().version == 3
    )


def test_a_full_server_says_what_replaces_a_policy(server: Server, tmp_path: Path) -> None:
    before = list(server.slots.content)
    for query in ("", "?dry_run=true"):
        full = replaced(server, tmp_path, query)
        assert full.status_code == 409
        assert "replace it with drain=true, which waits for its requests" in full.text
    third = server.ask("PUT", "/policies/third?drain=true", write(tmp_path, "third", b"3"))
    assert (third.status_code, "drain" in third.text) == (409, False)
    tried = replaced(server, tmp_path, "?drain=true&dry_run=true")
    assert (tried.status_code, tried.json()["changed"]) == (200, True)
    assert is_as_before(server, before)
    done = replaced(server, tmp_path)
    assert done.status_code == 200, done.text
    assert server.current.current.slots == {"new": 0, "other": 1}
    assert server.slots.content[0] == server.profiles.current.added["new"].sha256 != before[0]
    assert (server.slots.content[1], server.slots.kept) == (before[1], {})
    assert server.current.held_name(OLD) is None
    write(tmp_path, "new", b"new")
    back = ("POST", "/weights/rollback", {"version": 3})
    assert server.ask(*back).status_code == 409
    returned = server.ask("POST", "/weights/rollback?drain=true", {"version": 3})
    assert (returned.status_code, server.slots.content) == (200, before), returned.text
    # A prompt in the place of the adapter, and an adapter again.
    assert server.ask("PUT", "/policies/new?drain=true", {"system": "Hi."}).status_code == 200
    assert server.slots.content[0] is None
    assert replaced(server, tmp_path).status_code == 200
    assert server.slots.content[0] is not None


def test_what_comes_takes_the_slot_of_what_goes_with_the_same_change(
    server: Server, tmp_path: Path
) -> None:
    """As in a rollback, and in a store that another server has changed twice."""
    assert server.ask("DELETE", "/policies/new").status_code == 200
    third = server.ask("PUT", "/policies/third", write(tmp_path, "third", b"3"))
    assert (third.status_code, server.current.current.slots) == (200, {"other": 1, "third": 0})
    end = server.current.use(OLD)
    busy = server.ask("POST", "/weights/rollback", {"version": 3})
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "5")
    assert "still use policy 'third' after 0 s" in busy.text
    assert server.current.current.slots == {"other": 1, "third": 0}
    assert server.current.held_name(OLD) is None
    tried = server.ask("POST", "/weights/rollback?dry_run=true", {"version": 3})
    assert tried.status_code == 200
    end()
    back = server.ask("POST", "/weights/rollback", {"version": 3})
    assert back.status_code == 200, back.text
    assert server.current.current.slots == {"new": 0, "other": 1}
    assert server.slots.content[0] == server.profiles.current.added["new"].sha256
    assert (server.current.held, server.slots.kept) == (frozenset(), {})


def test_requests_under_way_end_first_and_new_ones_wait(server: Server, tmp_path: Path) -> None:
    before = list(server.slots.content)
    end = server.current.use(OLD)
    late = replaced(server, tmp_path)
    assert (late.status_code, late.headers["retry-after"]) == (503, "5")
    assert "still use policy 'new' after 0 s, and no slot is free" in late.text
    assert is_as_before(server, before)
    assert server.live.policies is not None
    server.live.policies._drain_s = 60.0

    async def come() -> None:
        policy = PoliciesFolder(tmp_path / "policies").adapter("new")
        change = server.live.change(
            lambda current: edits.with_policy(current, "new", policy, spec=SPEC),
            who="ops",
            what="test",
            drain=True,
        )
        coming = asyncio.create_task(change)
        while server.current.held_name(OLD) is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert server.current.held_name(frozenset({1})) is None
        assert not coming.done()
        assert server.slots.content == before
        end()
        await coming

    asyncio.run(come())
    assert server.current.held_name(OLD) is None
    assert server.slots.content[0] == server.profiles.current.added["new"].sha256 != before[0]


def test_a_request_that_leaves_the_engine_late_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that hangs up has gone here before the engine knows it."""
    assert server.live.policies is not None
    server.live.policies._drain_s = 60.0
    keep, refusals = server.slots.keep, iter(range(3))

    async def late(slot: int) -> None:
        if next(refusals, None) is not None:
            raise PolicyRefusedError("1 requests under way use slot 0; wait until they end")
        await keep(slot)

    monkeypatch.setattr(server.slots, "keep", late)
    assert replaced(server, tmp_path).status_code == 200
    assert next(refusals, None) is None


@pytest.mark.parametrize("fault", ["files", "layers", "store"])
def test_what_fails_puts_the_old_one_back(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    before = list(server.slots.content)

    async def wrong(slot: int, *args: Any, **more: Any) -> float:
        server.slots.content[slot] = None  # as the engine empties a slot whose layers are wrong
        raise PolicyRefusedError("its layers are wrong")

    def full(change: Any) -> None:
        raise StoreFullError("the disk is full")

    if fault == "layers":
        monkeypatch.setattr(server.slots, "put", wrong)
    elif fault == "store":
        monkeypatch.setattr(server.live.store, "commit", full)
    refused = replaced(server, tmp_path, content=b"bad" if fault == "files" else b"2")
    assert refused.status_code == (507 if fault == "store" else 400), refused.text
    assert is_as_before(server, before)
    # Requests were let in all the time if the files alone were wrong.
    assert server.slots.restored == ([] if fault == "files" else [0])


def test_a_slot_that_is_not_restored_serves_nobody_until_another_comes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name would stand for an adapter that is in no engine."""
    restore, put = server.slots.restore, server.slots.put

    async def lost(slot: int, *args: Any, **more: Any) -> float:
        server.slots.content[slot] = None
        raise PolicyRefusedError("the engine lost it")

    monkeypatch.setattr("prefmix.server.admin.in_place._RESTORE_S", 0.0)
    monkeypatch.setattr(server.slots, "put", lost)
    monkeypatch.setattr(server.slots, "restore", lost)
    assert replaced(server, tmp_path).status_code == 400
    other = server.ask("PUT", "/profiles/more", {"weights": {"a": 1}})
    assert (other.status_code, server.current.held_name(OLD)) == (200, "new")
    assert server.current.is_empty("new"), "the change of a profile brings no adapter"
    listed = server.ask("GET", "/policies").json()["policies"]
    assert {each["name"] for each in listed if not each["ready"]} == {"new"}
    monkeypatch.setattr(server.slots, "put", put)
    assert replaced(server, tmp_path, content=b"3").status_code == 200
    assert server.current.held_name(OLD) is None
    assert server.slots.content[0] is not None
    # A request of the engine's check that ends late does not matter.
    refusals = iter([1, 2])

    async def late(slot: int, key: str | None) -> None:
        if next(refusals, None) is not None:
            raise PolicyRefusedError("1 requests under way use slot 0; wait until they end")
        await restore(slot, key)

    monkeypatch.setattr("prefmix.server.admin.in_place._RESTORE_S", 5.0)
    monkeypatch.setattr(server.slots, "put", lost)
    monkeypatch.setattr(server.slots, "restore", late)
    before = list(server.slots.content)
    assert replaced(server, tmp_path).status_code == 400
    assert (server.slots.content, server.current.held_name(OLD)) == (before, None)
    assert not server.current.is_empty("new")


def test_no_process_lets_requests_in_before_all_have_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = FakeSlots()
    filled(Server(tmp_path, slots), tmp_path)
    first, second = (Server(tmp_path, slots, of=2, name=name) for name in ("one", "two"))
    before = list(slots.content)

    async def change(content: bytes) -> ProfileSet:
        write(tmp_path, "new", content)
        policy = PoliciesFolder(tmp_path / "policies").adapter("new")
        found = await first.live.change(
            lambda current: edits.with_policy(current, "new", policy, spec=SPEC),
            who="ops",
            what="test",
            drain=True,
        )
        return found.after

    async def run() -> None:
        for server in (first, second):
            await server.live.restore_policies()
            await server.live.start()
        end = second.current.use(OLD)
        with pytest.raises(SlotsBusyError):
            await change(b"2")
        assert is_as_before(first, before)
        assert is_as_before(second, before)
        end()
        # One that has not heard that all is as before hears it with the next change.
        second.current.hold(0)
        await first.live.change(
            lambda current: edits.with_profile(current, "more", {"a": 1}, spec=SPEC),
            who="ops",
            what="test",
        )
        assert second.current.held_name(OLD) is None
        put = slots.put

        async def put_while_held(slot: int, *args: Any, **more: Any) -> float:
            assert first.current.held_name(OLD) == second.current.held_name(OLD) == "new"
            return await put(slot, *args, **more)

        monkeypatch.setattr(slots, "put", put_while_held)
        await change(b"2")
        assert first.current.held_name(OLD) is second.current.held_name(OLD) is None

        # A process that misses the last step refuses requests for the policy until it follows.
        def missed(coming: Any) -> None:
            raise ValueError("it is busy")

        in_force = second.live._in_force.put
        monkeypatch.setattr(second.live._in_force, "put", missed)
        with pytest.raises(CommitError, match="in force here, but"):
            await change(b"3")
        assert second.current.held_name(OLD) == "new"
        assert slots.content[0] == first.profiles.current.added["new"].sha256
        monkeypatch.setattr(second.live._in_force, "put", in_force)
        puts = list(slots.puts)
        await second.live.reload(who="ops", trigger="watch")
        assert second.current.held_name(OLD) is None
        assert second.current.current.added == first.current.current.added
        assert slots.puts == puts, "what is in the slot already is not put again"

    try:
        asyncio.run(run())
    finally:
        first.live.close()
        second.live.close()


def test_a_slot_of_the_other_kind_is_not_the_policys_own(tmp_path: Path) -> None:
    """Without KV cache a policy has weight only where parameters are mixed."""
    server = Server(tmp_path, FakeSlots(dataclasses.replace(ENGINE, slots_without_kv=1)))
    one = {**write(tmp_path, "one"), "kv_cache": False}
    assert server.ask("PUT", "/policies/one", one).status_code == 200
    [own] = server.current.current.slots.values()
    other = {**write(tmp_path, "two", b"2"), "kv_cache": False}
    full = server.ask("PUT", "/policies/one", other)
    assert (full.status_code, "with drain=true" in full.text) == (409, True)
    assert server.ask("PUT", "/policies/one?drain=true", other).status_code == 200
    assert server.current.current.slots == {"one": own}
    assert server.ask("PUT", "/policies/more", write(tmp_path, "more")).status_code == 200
    moved = server.ask("PUT", "/policies/one?drain=true", {**other, "kv_cache": True})
    assert (moved.status_code, server.current.current.slots["one"]) == (409, own)


def test_a_held_slot_is_its_own_policys_and_another_is_replaced_in_place(
    server: Server, tmp_path: Path
) -> None:
    """Both are replaced at once, and no slot gets two of them."""
    server.current.hold(1)
    added = {}
    for name in ("new", "other"):
        write(tmp_path, name, f"a later step of {name}".encode())
        added[name] = PoliciesFolder(tmp_path / "policies").adapter(name)
    change = server.live.change(
        lambda current: edits.with_policies(current, added, spec=SPEC),
        who="ops",
        what="test",
        drain=True,
    )
    asyncio.run(change)
    assert server.current.current.slots == {"new": 0, "other": 1}
    assert server.slots.content == [added["new"].sha256, added["other"].sha256]
    assert not server.current.held
