"""Several API processes agree on a change, or it is not made.

Each process is a LiveWeights of its own here, all in one event loop; they talk through real Unix
sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.admin import two_phase_commit
from prefmix.server.admin.in_place import SlotsBusyError
from prefmix.server.admin.live_weights import LiveWeights
from prefmix.server.admin.store_watch import watch
from prefmix.server.admin.two_phase_commit import ApiProcesses, CommitError, ask_any
from prefmix.server.launch.sighup import SighupReload
from prefmix.weights.store.edits import with_profile
from prefmix.weights.store.errors import StaleVersionError
from prefmix.weights.store.format import document
from prefmix.weights.store.profiles import CurrentProfiles, ProfileSet, build_profile_set
from prefmix.weights.store.store import WeightsStore

SPEC = MixtureSpec(policies=(Policy(name="a", model="x"), Policy(name="b", model="y")))


def put(name: str, a: float = 1) -> Callable[[ProfileSet], ProfileSet]:
    return lambda current: with_profile(current, name, {"a": a, "b": 1})


def new_store(folder: Path) -> WeightsStore:
    store = WeightsStore(folder / "w.json", spec=SPEC)
    store.create(build_profile_set({}, SPEC))
    return store


def alone(source: WeightsStore, path: Path, *, folder: Path) -> LiveWeights:
    """The only API process, on a store at `path` with the profiles of `source`."""
    return LiveWeights(
        spec=SPEC,
        profiles=CurrentProfiles(source.read()),
        store=path,
        folder=folder,
        num_processes=1,
    )


@contextlib.asynccontextmanager
async def processes(folder: Path, *, up: int, of: int) -> AsyncIterator[list[LiveWeights]]:
    """`up` of `of` API processes on one store, all started from the same profiles."""
    (folder / "meet").mkdir()
    store = new_store(folder)
    members = [
        LiveWeights(
            spec=SPEC,
            profiles=CurrentProfiles(store.read()),
            store=store.path,
            folder=folder / "meet",
            num_processes=of,
            name=f"p{number}",
        )
        for number in range(up)
    ]
    try:
        for member in members:
            await member.start()
        yield members
    finally:
        for member in members:
            member.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, timeout=30))


async def until(is_true: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_true():
            await asyncio.sleep(0.01)


def versions(members: list[LiveWeights]) -> list[int]:
    return [member.current.version for member in members]


def test_a_change_is_in_force_everywhere_when_the_call_returns(tmp_path: Path) -> None:
    async def work() -> None:
        async with processes(tmp_path, up=3, of=3) as members:
            for number, member in enumerate([*members, *members], start=2):
                change = await member.change(put("x", number), who="me", what="test")
                assert versions(members) == [number] * 3
                assert {m.current.sha256 for m in members} == {change.after.sha256}
            assert members[0].store.read() == members[2].current

    run(work())


def test_concurrent_changes_are_serialised_and_none_is_lost(tmp_path: Path) -> None:
    async def work() -> None:
        async with processes(tmp_path, up=2, of=2) as members:
            changes = await asyncio.gather(
                *(
                    members[number % 2].change(put(f"p{number}"), who="me", what="test")
                    for number in range(20)
                )
            )
            assert sorted(change.after.version for change in changes) == list(range(2, 22))
            assert versions(members) == [21, 21]
            names = {f"p{number}" for number in range(20)}
            assert set(members[0].current.profiles) == names | {"default"}

    run(work())


def test_a_missing_process_refuses_every_change(tmp_path: Path) -> None:
    async def work() -> None:
        async with processes(tmp_path, up=1, of=2) as (member,):
            with pytest.raises(CommitError, match="1 of 2 API processes are up"):
                await member.change(put("x"), who="me", what="test")
            WeightsStore(member.store.path).change(put("y"))
            with pytest.raises(CommitError, match="1 of 2"):
                await member.reload(who="me", trigger="admin")
            assert (member.current.version, member.store.read().version) == (1, 2)

    run(work())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b'{"ok": false, "reason": "the moon is full"}\n', "API process q: the moon is full"),
        (b"", "API process q: it cannot be reached"),
        (None, "API process q: no answer within 1 s"),
    ],
)
def test_a_process_that_does_not_follow_stops_the_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, reason: str
) -> None:
    """A process refuses, hangs up, or is silent; store and processes keep the old version."""
    if answer is None:
        monkeypatch.setattr(two_phase_commit, "ANSWER_TIMEOUT_S", 1.0)
    done = asyncio.Event()

    async def unruly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        if answer is None:
            await reader.read()  # until the other side gives up
        else:
            writer.write(answer)
        writer.close()
        await writer.wait_closed()
        done.set()

    async def work() -> None:
        async with processes(tmp_path, up=2, of=3) as members:
            server = await asyncio.start_unix_server(unruly, path=str(tmp_path / "meet" / "q.sock"))
            with pytest.raises(CommitError) as caught:
                await members[0].change(put("x"), who="me", what="test")
            assert reason in str(caught.value).replace(" did not follow", "")
            assert versions(members) == [1, 1]
            assert members[0].store.read().version == 1
            await done.wait()
            server.close()

    run(work())


def test_a_process_refuses_what_it_could_not_serve(tmp_path: Path) -> None:
    """The second look at a change, in the process that has to serve it."""

    async def work() -> None:
        async with processes(tmp_path, up=1, of=1) as (member,):
            foreign = build_profile_set({}, MixtureSpec(policies=(Policy(name="z", model="z"),)))
            folder = tmp_path / "meet"
            for message, reason in (
                ({"kind": "prepare", "document": document(foreign)}, "other policies"),
                ({"kind": "prepare", "document": {"format": 1}}, "version is missing"),
                ({"kind": "prepare"}, "expected one JSON object"),
                ({"kind": "commit", "sha256": "00"}, "has not prepared"),
                ({"kind": "dance"}, "'dance'"),
            ):
                answer = await asyncio.to_thread(ask_any, folder, message, timeout_s=5)
                assert answer["ok"] is False
                assert reason in answer["reason"]
            assert member.current.version == 1

    run(work())


def test_no_process_to_ask_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CommitError, match="none is up yet"):
        ask_any(tmp_path, {"kind": "reload"}, timeout_s=1)


def test_a_meeting_place_that_is_gone_refuses_the_change(tmp_path: Path) -> None:
    async def refuse(message: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError

    async def work() -> None:
        alone = ApiProcesses(tmp_path / "gone", num_processes=2, receive=refuse)
        with pytest.raises(CommitError, match=r"folder .*gone cannot be locked: No such file"):
            async with alone.lock():
                pass

    run(work())


def test_a_hangup_reloads_in_every_process(tmp_path: Path) -> None:
    async def work() -> None:
        async with processes(tmp_path, up=2, of=2) as members:
            WeightsStore(tmp_path / "w.json").change(put("x"))
            before = signal.getsignal(signal.SIGHUP)
            with SighupReload(tmp_path / "meet"):
                os.kill(os.getpid(), signal.SIGHUP)
                await until(lambda: versions(members) == [2, 2])
            assert signal.getsignal(signal.SIGHUP) is before

    run(work())


def test_a_hangup_before_the_start_is_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def work() -> None:
        with SighupReload(tmp_path):
            os.kill(os.getpid(), signal.SIGHUP)
            said: list[str] = []
            await until(lambda: said.append(capfd.readouterr().err) or "none is up" in said[-1])

    run(work())


@contextlib.asynccontextmanager
async def watched(member: LiveWeights, path: Path) -> AsyncIterator[None]:
    task = asyncio.create_task(
        watch(path, lambda: member.reload(who="watch", trigger="watch", is_quiet=True))
    )
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_a_replaced_file_is_reloaded(tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            processes(tmp_path, up=2, of=2) as members,
            watched(members[0], tmp_path / "w.json"),
        ):
            await asyncio.sleep(0.1)
            store = WeightsStore(tmp_path / "w.json")
            for number in (2, 3, 4):
                store.change(put("x", number))
                await until(lambda number=number: versions(members) == [number] * 2)
            # A bad file is refused once and the next good one is taken.
            good = store.path.read_bytes()
            store.path.write_text("{")
            await asyncio.sleep(0.3)
            assert versions(members) == [4, 4]
            store.path.write_bytes(good)
            store.change(put("x", 9))
            await until(lambda: versions(members) == [5, 5])

    run(work())


def test_a_restored_file_is_a_new_version_in_every_process(tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            processes(tmp_path, up=2, of=2) as members,
            watched(members[0], tmp_path / "w.json"),
            watched(members[1], tmp_path / "w.json"),
        ):
            store = WeightsStore(tmp_path / "w.json", spec=SPEC)
            for number in (1, 2, 3):
                await members[number % 2].change(put("x", number), who="me", what="test")
            await asyncio.sleep(0.1)
            first = store.read_version(2)
            shutil.copy(tmp_path / "w.json.history" / "2.json", tmp_path / "w.json")
            await until(lambda: versions(members) == [5, 5])
            assert {member.current.sha256 for member in members} == {first.sha256}
            assert members[0].store.read() == members[1].current
            change = await members[1].change(put("x", 9), who="me", what="test", expected="5")
            assert change.after.version == 6
            assert store.read_version(4).weights("x") == {"a": 0.75, "b": 0.25}

    run(work())


def test_two_servers_on_one_store_agree_on_a_restored_file(tmp_path: Path) -> None:
    """Each sees the file; the first to hold the lock numbers it, the other takes that number."""

    async def work() -> None:
        source = new_store(tmp_path)
        for number in (1, 2, 3):
            source.change(put("x", number))
        servers = [alone(source, source.path, folder=tmp_path) for _ in range(2)]
        async with watched(servers[0], source.path), watched(servers[1], source.path):
            await asyncio.sleep(0.1)
            for _ in range(3):
                before = servers[0].current
                restored = source.read_version(2)
                shutil.copy(tmp_path / "w.json.history" / "2.json", source.path)
                await asyncio.gather(*(each.reload(who="me", trigger="admin") for each in servers))
                wanted = before.version + (restored.sha256 != before.sha256)
                await until(lambda wanted=wanted: versions(servers) == [wanted] * 2)
                assert {each.current.sha256 for each in servers} == {restored.sha256}
                assert source.read() == servers[1].current
                await servers[1].change(put("y", wanted), who="me", what="test")
                wanted += 1
                await until(lambda wanted=wanted: versions(servers) == [wanted] * 2)

    run(work())


def test_two_servers_and_a_command_change_one_store_at_once(tmp_path: Path) -> None:
    """No change is lost or numbered twice; both serve the last one without being asked."""

    async def change_all(server: LiveWeights, name: str) -> list[int]:
        return [
            (await server.change(put(f"{name}{n}"), who=name, what="test")).after.version
            for n in range(20)
        ]

    def command() -> list[int]:
        return [source.change(put(f"command{n}")).after.version for n in range(20)]

    source = new_store(tmp_path)

    async def work() -> None:
        servers = [alone(source, source.path, folder=tmp_path) for _ in range(2)]
        async with watched(servers[0], source.path), watched(servers[1], source.path):
            given = await asyncio.gather(
                change_all(servers[0], "first"),
                change_all(servers[1], "second"),
                asyncio.to_thread(command),
            )
            assert sorted(itertools.chain(*given)) == list(range(2, 62))
            await until(lambda: versions(servers) == [61, 61])
            assert servers[0].current == servers[1].current == source.read()
            assert len(source.read().profiles) == 1 + 60
            with pytest.raises(StaleVersionError, match="the store is at version 61"):
                await servers[0].change(put("x"), who="me", what="test", expected="60")

    run(work())


def test_a_change_on_a_restored_file_writes_its_new_number(tmp_path: Path) -> None:
    """Even a change of nothing: the file may not keep a number that is not in force."""

    async def work() -> None:
        async with processes(tmp_path, up=1, of=1) as (member,):
            for number in (1, 2, 3):
                await member.change(put("x", number), who="me", what="test")
            served = member.current
            shutil.copy(tmp_path / "w.json.history" / "2.json", tmp_path / "w.json")
            rehearsed = await member.change(put("x", 1), who="me", what="test", dry_run=True)
            with pytest.raises(StaleVersionError, match="the store is at version 5"):
                await member.change(put("x", 7), who="me", what="test", expected="4")
            assert member.current == served
            change = await member.change(put("x", 1), who="me", what="test")
            assert change.is_noop
            assert change.after.version == rehearsed.after.version == member.current.version == 5
            assert '"version": 5' in (tmp_path / "w.json").read_text()
            assert member.store.read_version(4) == served

    run(work())


def test_a_config_map_swap_is_reloaded(tmp_path: Path) -> None:
    """Kubernetes mounts w.json -> ..data/w.json, ..data -> ..<time>, and renames a new ..data."""

    def deploy(mount: Path, stamp: str, content: str) -> None:
        (mount / stamp).mkdir()
        (mount / stamp / "w.json").write_text(content)
        (mount / "..data_tmp").symlink_to(stamp)
        (mount / "..data_tmp").rename(mount / "..data")

    async def work() -> None:
        source = new_store(tmp_path)
        mount = tmp_path / "mount"
        mount.mkdir()
        deploy(mount, "..2026_1", source.path.read_text())
        (mount / "w.json").symlink_to("..data/w.json")
        member = alone(source, mount / "w.json", folder=tmp_path)
        async with watched(member, mount / "w.json"):
            await asyncio.sleep(0.1)
            source.change(put("x"))
            deploy(mount, "..2026_2", source.path.read_text())
            await until(lambda: member.current.version == 2)

    run(work())


def test_what_changed_before_the_watch_began_is_not_missed(tmp_path: Path) -> None:
    async def work() -> None:
        async with processes(tmp_path, up=1, of=1) as (member,):
            WeightsStore(tmp_path / "w.json").change(put("x"))
            async with watched(member, tmp_path / "w.json"):
                await until(lambda: member.current.version == 2)

    run(work())


def test_the_watch_tries_again_when_a_process_was_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefmix.server.admin.store_watch.LOOK_INTERVAL_S", 0.1)

    async def work() -> None:
        async with processes(tmp_path, up=1, of=2) as (member,):
            WeightsStore(tmp_path / "w.json").change(put("x"))
            async with watched(member, tmp_path / "w.json"):
                await asyncio.sleep(0.3)
                assert member.current.version == 1
                late = LiveWeights(
                    spec=SPEC,
                    profiles=CurrentProfiles(member.current),
                    store=tmp_path / "w.json",
                    folder=tmp_path / "meet",
                    num_processes=2,
                    name="late",
                )
                await late.start()
                await until(lambda: versions([member, late]) == [2, 2])
                late.close()

    run(work())


def test_the_watch_tries_again_when_requests_use_the_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefmix.server.admin.store_watch.LOOK_INTERVAL_S", 0.1)
    calls = []

    async def reload() -> None:
        calls.append(len(calls))
        if len(calls) < 3:
            raise SlotsBusyError("requests under way still use the slots")

    async def work() -> None:
        new_store(tmp_path)
        task = asyncio.create_task(watch(tmp_path / "w.json", reload))
        await until(lambda: len(calls) == 3)
        await asyncio.sleep(0.3)
        task.cancel()

    run(work())
    assert len(calls) == 3, "and no more once it is in force"


def test_a_folder_that_is_removed_and_made_again_is_watched_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefmix.server.admin.store_watch.LOOK_INTERVAL_S", 0.1)

    async def work() -> None:
        source = new_store(tmp_path)
        folder = tmp_path / "mount"
        shutil.copytree(tmp_path, folder)
        member = alone(source, folder / "w.json", folder=tmp_path)
        async with watched(member, folder / "w.json"):
            await asyncio.sleep(0.1)
            shutil.rmtree(folder)
            await asyncio.sleep(0.3)
            assert member.current.version == 1
            source.change(put("x"))
            folder.mkdir()
            shutil.copy(source.path, folder / "w.json")
            await until(lambda: member.current.version == 2)

    run(work())
