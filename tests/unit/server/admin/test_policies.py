"""Policies that come and go over the admin routes, in one API process and in two."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.admin.listener import admin_app
from prefmix.server.admin.live_weights import LiveWeights
from prefmix.server.admin.policy_changes import NoSlotsError, PolicyChanges, SlotsBusyError
from prefmix.server.admin.routes import AdminState
from prefmix.server.admin.two_phase_commit import CommitError
from prefmix.server.auth.tokens import Token, Tokens
from prefmix.server.slots.engine_slots import PolicyRefusedError
from prefmix.server.slots.policies_folder import PoliciesFolder, PoliciesFolderError
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet, configured
from prefmix.weights.store import edits
from prefmix.weights.store.profiles import CurrentProfiles, ProfileSet, build_profile_set
from prefmix.weights.store.store import WeightsStore

ENGINE = MixtureSpec(
    policies=(Policy(name="a", model="org/a"),),
    reference=Policy(name="base", model="org/base"),
    base="org/base",
    adapter_slots=2,
    max_adapter_rank=8,
)
SPEC = configured(ENGINE)


class FakeSlots:
    """The slots of an engine, without one; an adapter whose parameters are b"bad" is refused."""

    def __init__(self) -> None:
        self.content: list[str | None] = [None] * ENGINE.adapter_slots
        self.puts: list[tuple[int, str]] = []
        self.tried: list[str] = []

    async def keys(self) -> list[str | None]:
        return self.content

    async def read(self, name: str, folder: str) -> None:
        self.tried.append(name)
        if (Path(folder) / "adapter_model.safetensors").read_bytes() == b"bad":
            raise PolicyRefusedError(f"policy {name!r}: its adapter is bad")

    async def drop(self) -> None:
        self.tried.append("dropped")

    async def put(self, slot: int, name: str, folder: str, *, key: str) -> float:
        await self.read(name, folder)
        self.content[slot] = key
        self.puts.append((slot, name))
        return 0.0


class Server:
    """One API process's part: store, policies and routes."""

    def __init__(self, folder: Path, slots: FakeSlots, *, of: int = 1, name: str = "one") -> None:
        self.store = WeightsStore(folder / "w.json", spec=SPEC, takes_added=True)
        initial = self.store.create(build_profile_set({"even": {"a": 1, "base": 1}}, SPEC))
        self.slots = slots
        self.current = CurrentPolicies(PolicySet.of(ENGINE))
        self.profiles = CurrentProfiles(initial)
        (folder / "meet").mkdir(exist_ok=True)
        self.live = LiveWeights(
            spec=SPEC,
            profiles=self.profiles,
            store=self.store.path,
            folder=folder / "meet",
            num_processes=of,
            name=name,
            policies=PolicyChanges(
                self.current,
                slots,  # type: ignore[arg-type]
                PoliciesFolder(folder / "policies"),
                wait_s=0.0,
            ),
        )
        tokens = Tokens([Token.of("ops", "secret")])
        self.client = TestClient(admin_app(AdminState(tokens=tokens, live=self.live)))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        headers = {"Authorization": "Bearer secret", "Content-Type": "application/json", **headers}
        content = None if body is None else json.dumps(body)
        return self.client.request(method, f"/admin{path}", content=content, headers=headers)

    def names(self) -> tuple[str, ...]:
        assert self.current.current.spec.member_names == self.profiles.current.member_names
        return self.profiles.current.member_names


def write(folder: Path, name: str, parameters: bytes = b"1") -> dict[str, str]:
    adapter = folder / "policies" / name
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(parameters)
    return {"adapter": name}


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
    assert listed["slots"] == {"total": 2, "free": 1, "max_rank": 8}
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
        assert message == {"kind": "unused", "slot": 0}

    async def come() -> PolicySet:
        assert server.live.policies is not None
        added = {**server.profiles.current.added}
        added["new"] = await server.live.policies.described("new")
        coming = asyncio.create_task(server.live.policies.provide(added, tell_all))
        await asyncio.sleep(0.2)
        assert not coming.done()
        end()
        return await coming

    assert asyncio.run(come()).slots == {"other": 1, "new": 0}


def test_a_refused_policy_changes_nothing(server: Server, tmp_path: Path) -> None:
    for body, status, words in (
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


def test_a_dry_run_lets_the_engine_read_and_puts_nothing(server: Server, tmp_path: Path) -> None:
    good = server.ask("PUT", "/policies/new?dry_run=true", write(tmp_path, "good"))
    assert (good.json()["changed"], good.json()["dry_run"]) == (True, True)
    assert server.slots.tried == ["new", "dropped"]
    bad = server.ask("PUT", "/policies/new?dry_run=true", write(tmp_path, "bad", b"bad"))
    assert bad.status_code == 400
    assert (server.names(), server.store.read().version) == (("a", "base"), 1)
    assert server.slots.content == [None, None]


def test_a_policy_that_requests_use_goes_with_drain_only(server: Server, tmp_path: Path) -> None:
    server.ask("PUT", "/policies/new", write(tmp_path, "new"))
    end = server.current.use(frozenset({0}))
    refused = server.ask("DELETE", "/policies/new")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert "drain=true" in refused.json()["error"]["message"]
    assert server.ask("DELETE", "/policies/new?drain=true").status_code == 200
    assert server.names() == ("a", "base")
    end()


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


def test_a_server_without_slots_takes_no_policies(tmp_path: Path) -> None:
    server = Server(tmp_path, FakeSlots())
    server.live.policies = PolicyChanges(
        CurrentPolicies(PolicySet.of(SPEC)),
        server.slots,  # type: ignore[arg-type]
        None,
    )
    refused = server.ask("PUT", "/policies/new", write(tmp_path, "new"))
    assert refused.status_code == 409
    assert "--adapter-slots N and --policies-dir FOLDER" in refused.json()["error"]["message"]
    assert server.ask("GET", "/policies").json()["slots"]["total"] == 0
    added = {"x": None, "y": None}
    with pytest.raises(NoSlotsError, match="2 added policies, and this server 0 slots"):
        asyncio.run(server.live.policies.restore(added))  # type: ignore[arg-type]
