"""The manifest of policies: what it names comes and goes at once, and requests change nothing."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import prometheus_client
import pytest

from prefmix.server.admin.policies_manifest import PoliciesManifest
from prefmix.server.slots.engine_slots import PolicyRefusedError
from prefmix.server.slots.policies_folder import PoliciesFolder
from prefmix.weights.store import edits
from support.runtime.policies_server import SPEC, FakeSlots, Server, write


class Followed:
    """A server that follows a manifest, mounted as Kubernetes mounts a ConfigMap."""

    def __init__(self, folder: Path, slots: FakeSlots, **process: Any) -> None:
        self.folder, self.mount = folder, folder / "mount"
        self.mount.mkdir(exist_ok=True)
        self.path = self.mount / "policies.yaml"
        self.server = Server(folder, slots, **process)
        assert self.server.live.policies is not None
        self.server.live.policies.manifest = self.path
        self.manifest = PoliciesManifest(
            self.path,
            self.server.live,
            PoliciesFolder(folder / "policies"),
            run_folder=folder / "meet",
        )

    def deploy(self, text: str) -> None:
        """Puts a manifest in place by one swap of a link above it."""
        stamp = f"..{len(list(self.mount.iterdir()))}"
        (self.mount / stamp).mkdir()
        (self.mount / stamp / "policies.yaml").write_text(text)
        (self.mount / "..data_tmp").symlink_to(stamp)
        (self.mount / "..data_tmp").rename(self.mount / "..data")
        if not self.path.is_symlink():
            self.path.symlink_to("..data/policies.yaml")

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        await self.manifest.begin()
        task = asyncio.create_task(self.manifest.follow())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self.manifest.close()

    @property
    def names(self) -> tuple[str, ...]:
        return self.server.names()


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefmix.server.admin.store_watch.LOOK_INTERVAL_S", 0.1)
    monkeypatch.setattr("prefmix.server.admin.policies_manifest.LOOK_INTERVAL_S", 0.1)


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path, FakeSlots())


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def serve_one_and_two(followed: Followed, folder: Path) -> None:
    """Has a server take two policies from the manifest, and ends it."""
    for name in ("one", "two"):
        write(folder, name, name.encode())
    followed.deploy("policies: {one: one, two: two}")
    async with followed.following():
        assert followed.names == ("a", "one", "two", "base")


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_true():
            await asyncio.sleep(0.01)


def count(result: str) -> float:
    labels = {"trigger": "manifest", "result": result}
    name = "prefmix_policy_changes_total"
    return prometheus_client.REGISTRY.get_sample_value(name, labels) or 0.0


def in_force() -> float | None:
    return prometheus_client.REGISTRY.get_sample_value("prefmix_policies_manifest_successful")


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if "policies-manifest" in line and "refused" in line]


def test_policies_come_change_and_go_with_the_manifest(followed: Followed, tmp_path: Path) -> None:
    async def work() -> None:
        write(tmp_path, "one/step-1")
        followed.deploy("policies: {one: one/step-1}")
        async with followed.following():
            assert followed.names == ("a", "one", "base"), "before the first answer"
            write(tmp_path, "two", b"2")
            followed.deploy("policies: {one: one/step-1, two: {adapter: two, system: Be kind}}")
            await until(lambda: followed.names == ("a", "one", "two", "base"))
            assert followed.server.profiles.current.version == 3
            assert followed.server.profiles.current.added["two"].system == "Be kind"
            followed.deploy("policies: {two: two}")
            await until(lambda: followed.names == ("a", "two", "base"))
            # Other files in the same folder are another adapter.
            write(tmp_path, "two", b"22")
            await until(lambda: followed.server.profiles.current.version == 5)
            assert followed.server.slots.puts[-1][1] == "two"
            followed.deploy("policies: {}")
            await until(lambda: followed.names == ("a", "base") and in_force() == 1)

    run(work())


@pytest.mark.parametrize(
    ("text", "words"),  # for {}: the manifest's path
    [
        ("policies: {old: old, two: bad}", "{}: policy 'two': its adapter is bad"),
        ("policies: {one: one, two: gone}", "{}: policies.two: adapter 'gone': the server's"),
        ("policies: {one: one, a: two}", "{}: policy 'a' is one of the configuration"),
        ("policies: {one: one, two: ../two}", "no way out of it"),
        ("policies: {one: one, two: {adapter: two, x: 1}}", "policies.two.x"),
        ("policies: {one: one, 2: two}", "put it in quotes"),
        ("policies: {one: one, two: }", "policies.two is null, expected the adapter's folder, or"),
        ("policies: {one: one, two: [two]}", 'policies.two is ["two"], expected the adapter\'s'),
        ("{policies: {one: one}, drain: 1}", "{}: drain is 1, expected true or false"),
        ("{policies: {one: one}, drian: true}", "the keys policies, drian, expected policies, a"),
        ("drain: true", "the keys drain, expected policies"),
        ("policies: {one: {model: one}}", "{}: policies.one: a running server takes no full"),
        ("policies: [one]", '{}: policies is ["one"], expected a table of NAME: FOLDER'),
        ("policies:", "{}: policies is null, expected a table"),
        ("policies: {one: one, two: two, more: one}", "{}: 3 added policies need"),
        ("policies: {one: one, two: two, more: one}", "2 slots; name fewer, or start it with"),
        ("profiles: {}", "the keys profiles"),
        ("", "the keys none"),
        ("policies: {one: one, one: two}", "is given twice"),
        ("policies: {", "line 1"),
    ],
)
def test_a_broken_manifest_changes_nothing_and_is_told_once(
    followed: Followed, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, words: str
) -> None:
    caplog.set_level(logging.INFO, logger="prefmix.audit")
    for name, content in (("one", b"1"), ("two", b"2"), ("bad", b"bad"), ("old", b"0")):
        write(tmp_path, name, content)

    async def work() -> None:
        followed.deploy("policies: {old: old}")
        await followed.manifest.begin()
        before = count("refused")
        followed.deploy(text)
        for _ in range(3):
            await followed.manifest.begin()
            assert followed.names == ("a", "old", "base")
            assert in_force() == 0
        [told] = refusals(caplog)
        assert words.replace("{}", str(followed.path), 1) in told.replace('\\"', '"')
        assert count("refused") == before + 1
        followed.deploy("policies: {one: one}")
        await followed.manifest.begin()
        assert followed.names == ("a", "one", "base")
        assert in_force() == 1
        followed.manifest.close()

    run(work())


def test_a_refused_manifest_is_tried_again_when_what_it_needs_has_changed(
    followed: Followed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An adapter that was not complete, and a profile that used a policy which is to go."""

    async def work() -> None:
        write(tmp_path, "one", b"bad")
        followed.deploy("policies: {one: one}")
        async with followed.following():
            assert in_force() == 0
            assert followed.names == ("a", "base")
            await asyncio.sleep(0.3)  # the watch has begun
            write(tmp_path, "one")
            await until(lambda: followed.names == ("a", "one", "base") and in_force() == 1)
            # In this event loop, as a server's routes are, for the queue of changes is of one.
            change = functools.partial(followed.server.live.change, who="ops", what="test")
            both = {"a": 1, "one": 1}
            await change(lambda current: edits.with_profile(current, "both", both, spec=SPEC))
            followed.deploy("policies: {}")
            await until(lambda: "'one' has weight in both" in refusals(caplog)[-1])
            assert in_force() == 0
            await change(lambda current: edits.without_profile(current, "both"))
            await until(lambda: followed.names == ("a", "base"))

    run(work())


def test_a_manifest_that_is_not_there_yet_leaves_the_stores_policies(
    followed: Followed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with followed.following():
            assert in_force() == 0
            assert "policies.yaml does not exist" in refusals(caplog)[0]
            write(tmp_path, "one")
            followed.deploy("policies: {one: one}")
            await until(lambda: followed.names == ("a", "one", "base") and in_force() == 1)
            followed.path.unlink()
            await until(lambda: in_force() == 0)
            assert followed.names == ("a", "one", "base")

    run(work())


def test_requests_change_no_policy_beside_a_manifest(followed: Followed, tmp_path: Path) -> None:
    async def begin() -> None:
        write(tmp_path, "one")
        followed.deploy("policies: {one: one}")
        async with followed.following():
            pass

    run(begin())
    server = followed.server
    for method, path, body in (
        ("PUT", "/policies/two", {"adapter": "one"}),
        ("PUT", "/policies/two?dry_run=true", {"adapter": "one"}),
        ("DELETE", "/policies/one", None),
        ("DELETE", "/policies/one?drain=true", None),
        ("POST", "/weights/rollback", {"version": 1}),
        ("POST", "/weights/rollback?dry_run=true", {"version": 1}),
    ):
        refused = server.ask(method, path, body)
        assert refused.status_code == 409, (method, path, refused.text)
        assert str(followed.path) in refused.json()["error"]["message"]
    assert followed.names == ("a", "one", "base")
    assert server.ask("GET", "/policies").json()["manifest"] == str(followed.path)
    # Weights are the requests' own business.
    assert server.ask("PUT", "/profiles/p", {"weights": {"one": 1}}).status_code == 200
    assert server.ask("POST", "/weights/rollback", {"version": 2}).status_code == 200


def test_policies_that_a_replaced_store_brings_are_the_manifests_again(
    followed: Followed, tmp_path: Path
) -> None:
    async def work() -> None:
        write(tmp_path, "one")
        followed.deploy("policies: {}")
        async with followed.following():
            other = Server(tmp_path, FakeSlots())
            came = await asyncio.to_thread(other.ask, "PUT", "/policies/x", {"adapter": "one"})
            assert came.status_code == 200, came.text
            await followed.server.live.reload(who="test", trigger="admin")
            assert followed.names == ("a", "x", "base")
            await until(lambda: followed.names == ("a", "base"))

    run(work())


def test_a_start_needs_no_adapter_that_the_manifest_has_replaced(
    followed: Followed, tmp_path: Path
) -> None:
    """Files may change, and go, while no server runs; a running one follows them, too."""
    run(serve_one_and_two(followed, tmp_path))
    shutil.rmtree(tmp_path / "policies" / "two")
    write(tmp_path, "one", b"a later step")
    again = Followed(tmp_path, FakeSlots())
    asyncio.run(again.server.live.restore_policies())
    current = again.server.current
    assert {current.held_name(frozenset({slot})) for slot in (0, 1)} == {"one", "two"}
    assert again.server.slots.content == [None, None], "the base answers for neither"

    async def after() -> None:
        again.deploy("policies: {}")
        async with again.following():
            again.deploy("policies: {one: one}")
            await until(lambda: again.names == ("a", "one", "base"))

    run(after())
    assert current.held_name(frozenset({0, 1})) is None
    assert [each for each in again.server.slots.content if each] == [
        PoliciesFolder(tmp_path / "policies").adapter("one").sha256
    ]


def test_one_of_two_api_processes_follows_the_manifest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        slots = FakeSlots()
        both = [Followed(tmp_path, slots, of=2, name=name) for name in ("one", "two")]
        write(tmp_path, "new")
        both[0].deploy("policies: {new: new}")
        for each in both:
            await each.server.live.start()
        try:
            async with both[0].following(), both[1].following():
                await until(lambda: both[1].names == ("a", "new", "base") and in_force() == 1)
                assert both[0].names == both[1].names
                assert [name for _, name in slots.puts] == ["new"]
                both[0].deploy("policies: {new: gone}")
                await until(lambda: in_force() == 0)
                await asyncio.sleep(0.3)  # two looks of both
                assert len(refusals(caplog)) == 1
                # The other takes over from one that has ended.
                both[0].manifest.close()
                await until(lambda: len(refusals(caplog)) == 2)
        finally:
            for each in both:
                each.server.live.close()

    run(work())


def test_adapters_that_come_after_a_start_serve_as_they_did(
    followed: Followed, tmp_path: Path
) -> None:
    """A folder that is filled while the server starts has the files that the store names."""
    run(serve_one_and_two(followed, tmp_path))
    policies = tmp_path / "policies"
    policies.rename(tmp_path / "away")
    policies.mkdir()
    again = Followed(tmp_path, FakeSlots())
    current = again.server.current

    async def after() -> None:
        await again.server.live.restore_policies()
        async with again.following():
            assert {current.held_name(frozenset({slot})) for slot in (0, 1)} == {"one", "two"}
            policies.rmdir()
            (tmp_path / "away").rename(policies)
            await until(lambda: current.held_name(frozenset({0, 1})) is None)

    run(after())
    assert again.server.slots.content == followed.server.slots.content
    assert again.names == ("a", "one", "two", "base")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_start_with_other_files_in_every_slot(
    followed: Followed, tmp_path: Path, caplog: pytest.LogCaptureFixture, num_processes: int
) -> None:
    """Slots whose policies could not be brought are room for what comes."""
    run(serve_one_and_two(followed, tmp_path))
    for name in ("one", "two"):
        write(tmp_path, name, f"a later step of {name}".encode())
    slots = FakeSlots()
    every = [
        Followed(tmp_path, slots, of=num_processes, name=str(number))
        for number in range(num_processes)
    ]

    async def after() -> None:
        for each in every:
            await each.server.live.restore_policies()
            await each.server.live.start()
            assert each.server.current.held == {0, 1}
            assert each.server.current.is_empty("one")
        [told] = {line for line in caplog.messages if line.startswith("policy 'one' is refused")}
        assert "'one' has other files than when it was added" in told
        async with every[0].following():
            await until(lambda: not any(each.server.current.held for each in every))

    try:
        run(after())
    finally:
        for each in every:
            each.server.live.close()
    folder = PoliciesFolder(tmp_path / "policies")
    for each in every:
        content = {name: slots.content[n] for name, n in each.server.current.current.slots.items()}
        assert content == {name: folder.adapter(name).sha256 for name in ("one", "two")}


def test_a_held_slot_is_room_beside_policies_that_serve(followed: Followed, tmp_path: Path) -> None:
    """A change that fails leaves it held, and the next one finds it."""
    run(serve_one_and_two(followed, tmp_path))
    write(tmp_path, "one", b"a later step")
    again = Followed(tmp_path, FakeSlots())
    current = again.server.current
    again.deploy("policies: {new: one, two: two}")

    async def after() -> None:
        await again.server.live.restore_policies()
        assert current.held == {0}
        put, again.server.slots.put = again.server.slots.put, lost  # type: ignore[method-assign]
        await again.manifest.begin()
        assert (again.names, current.held) == (("a", "one", "two", "base"), {0})
        again.server.slots.put = put  # type: ignore[method-assign]
        await again.manifest.begin()
        assert (again.names, current.held) == (("a", "new", "two", "base"), frozenset())
        again.manifest.close()

    async def lost(slot: int, *args: Any, **more: Any) -> float:
        raise PolicyRefusedError("the engine lost it")

    run(after())
    assert current.current.slots == {"two": 1, "new": 0}


def test_a_manifest_without_room_names_a_step_that_works(
    followed: Followed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two"):
        write(tmp_path, name, name.encode())

    async def work() -> None:
        for text in ("{one: one, two: two}", "{one: two, two: two}", "{two: two}"):
            followed.deploy(f"policies: {text}")
            await followed.manifest.begin()
        [told] = refusals(caplog)
        step = "apply the manifest without one first and with it afterwards, say drain: true in it"
        assert step in told
        assert "which waits for their requests, or start the server" in told
        assert str(followed.path) in told
        assert "remove" not in told
        assert "drain=true" not in told, "it is a request's"
        followed.deploy("policies: {one: two, two: two}")
        await followed.manifest.begin()
        assert (followed.names, in_force()) == (("a", "one", "two", "base"), 1)
        followed.manifest.close()

    run(work())


def test_a_manifest_replaces_in_full_slots_on_demand(followed: Followed, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path, name, name.encode())
    policies = followed.server.live.policies
    assert policies is not None
    policies._drain_s = 60.0
    current = followed.server.current

    async def work() -> None:
        followed.deploy("policies: {one: one, two: two}")
        async with followed.following():
            before = current.current.slots
            end = current.use(frozenset({before["one"]}))
            followed.deploy("{policies: {one: two, two: two}, drain: true}")
            await until(lambda: current.held_name(current.all_slots) == "one")
            assert current.current.slots == before
            end()
            await until(lambda: in_force() == 1 and current.current.added["one"].adapter == "two")
            assert current.current.slots == before
            assert len(set(followed.server.slots.content)) == 1

    run(work())


def test_what_a_manifest_names_takes_the_slots_of_what_it_no_longer_names(
    followed: Followed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All slots hold policies, and others are named in their place."""
    for name in ("one", "two", "three"):
        write(tmp_path, name, name.encode())
    current = followed.server.current

    async def work() -> None:
        followed.deploy("policies: {one: one, two: two}")
        async with followed.following():
            assert current.current.slots == {"one": 0, "two": 1}
            end = current.use(frozenset({0}))
            followed.deploy("policies: {two: two, three: three}")
            await until(lambda: bool(refusals(caplog)))
            assert followed.names == ("a", "one", "two", "base"), "its requests end first"
            assert "requests under way still use policy 'one'" in refusals(caplog)[-1]
            end()
            await until(lambda: followed.names == ("a", "two", "three", "base"))
            assert current.current.slots == {"two": 1, "three": 0}
            assert not current.held
            # A prompt takes the slot of a prompt at once, and what fails leaves all as it was.
            followed.deploy("policies: {kind: {system: Be kind}, two: two}")
            await until(lambda: followed.names == ("a", "kind", "two", "base"))
            end = current.use(frozenset({0}))
            followed.deploy("policies: {brief: {system: Be brief}, two: two}")
            await until(lambda: followed.names == ("a", "brief", "two", "base") and in_force() == 1)
            end()
            content = list(followed.server.slots.content)
            write(tmp_path, "three", b"bad")
            followed.deploy("policies: {brief: {system: Be brief}, three: three}")
            await until(lambda: in_force() == 0)
            assert (followed.server.slots.content, current.held) == (content, frozenset())

    run(work())
