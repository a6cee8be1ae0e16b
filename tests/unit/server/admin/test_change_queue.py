"""Changes behind a lock that another program holds: few wait, none for long, all are answered."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.admin import change_queue
from prefmix.server.admin.change_queue import ChangeQueue
from prefmix.server.admin.listener import admin_app
from prefmix.server.admin.live_weights import LiveWeights
from prefmix.server.admin.routes import AdminState
from prefmix.server.admin.store_watch import watch
from prefmix.server.auth.tokens import Token, Tokens
from prefmix.weights.store.durable_file import file_lock
from prefmix.weights.store.errors import StoreBusyError
from prefmix.weights.store.profiles import CurrentProfiles, build_profile_set
from prefmix.weights.store.store import WeightsStore

SPEC = MixtureSpec(policies=(Policy(name="a", model="x"), Policy(name="b", model="y")))
WAIT_S = 0.5
MAX_WAITING = 3


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LiveWeights:
    """A server's profiles at version 1; its queue is short and impatient."""
    return live_in(tmp_path, monkeypatch, wait_s=WAIT_S)


def live_in(folder: Path, monkeypatch: pytest.MonkeyPatch, *, wait_s: float) -> LiveWeights:
    monkeypatch.setattr(change_queue, "WAIT_S", wait_s)
    monkeypatch.setattr(change_queue, "MAX_WAITING", MAX_WAITING)
    store = WeightsStore(folder / "w.json", spec=SPEC)
    profiles = CurrentProfiles(store.create(build_profile_set({}, SPEC)))
    return LiveWeights(
        spec=SPEC, profiles=profiles, store=store.path, folder=folder, num_processes=1
    )


def run(work: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(work, timeout=30))


def asking(live: LiveWeights) -> httpx.AsyncClient:
    app = admin_app(AdminState(tokens=Tokens([Token.of("ops", "secret")]), live=live))
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://127.0.0.1",
        headers={"Authorization": "Bearer secret"},
    )


def put(client: httpx.AsyncClient, number: int) -> Awaitable[httpx.Response]:
    return client.put(f"/admin/profiles/p{number}", json={"weights": {"a": 1, "b": number}})


def test_changes_behind_a_held_lock_are_refused_soon_and_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All answers come while the lock is still held."""
    live = live_in(tmp_path, monkeypatch, wait_s=2)

    async def work() -> None:
        async with asking(live) as client:
            with file_lock(live.store.path.with_name("w.json.lock"), timeout_s=1):
                tasks = [asyncio.create_task(put(client, number)) for number in range(12)]
                while sum(task.done() for task in tasks) < len(tasks) - 1 - MAX_WAITING:
                    await asyncio.sleep(0.01)
                early = [task for task in tasks if task.done()]
                late = [task for task in tasks if not task.done()]
                assert len(late) == 1 + MAX_WAITING, "one has its turn, the others wait for theirs"
                answers = [*(task.result() for task in early), *await asyncio.gather(*late)]
                assert Counter(answer.status_code for answer in answers) == {503: 12}
                assert {answer.headers["Retry-After"] for answer in answers} == {"5"}
                messages = [answer.json()["error"]["message"] for answer in answers]
                assert sum("changes wait already" in message for message in messages) == 8
                assert sum("w.json.lock" in message for message in messages) >= 1
                shown = await client.get("/admin/weights")
                assert shown.json()["version"] == 1
            assert (await put(client, 1)).json()["version"] == 2, "it works again at once"

    run(work())


def test_a_lock_that_is_let_go_in_time_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_in(tmp_path, monkeypatch, wait_s=10)

    async def work() -> None:
        async with asking(live) as client:
            with file_lock(live.store.path.with_name("w.json.lock"), timeout_s=1):
                tasks = [asyncio.create_task(put(client, number)) for number in (1, 2, 3)]
                await asyncio.sleep(0.1)
            answers = await asyncio.gather(*tasks)
            assert [answer.json()["version"] for answer in answers] == [2, 3, 4]

    run(work())


@pytest.mark.parametrize("path", ["/weights/history", "/profiles/x?dry_run=true"])
def test_looks_need_no_lock(live: LiveWeights, path: str) -> None:
    async def work() -> None:
        async with asking(live) as client:
            with file_lock(live.store.path.with_name("w.json.lock"), timeout_s=1):
                method = "GET" if "history" in path else "PUT"
                body = None if method == "GET" else {"weights": {"a": 1}}
                answer = await client.request(method, f"/admin{path}", json=body)
                assert answer.status_code == 200, answer.text

    run(work())


def test_the_watch_tries_a_restored_file_again_once_the_lock_is_free(
    live: LiveWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefmix.server.admin.store_watch.LOOK_INTERVAL_S", 0.1)

    async def until(is_true: Callable[[], bool]) -> None:
        while not is_true():
            await asyncio.sleep(0.02)

    async def work() -> None:
        first = live.store.path.read_bytes()
        async with asking(live) as client:
            await put(client, 1)
        with file_lock(live.store.path.with_name("w.json.lock"), timeout_s=1):
            live.store.path.write_bytes(first)
            seen = asyncio.create_task(
                watch(live.store.path, lambda: live.reload(who="w", trigger="watch"))
            )
            await asyncio.sleep(2 * WAIT_S)
            assert live.current.version == 2
        await until(lambda: live.current.version == 3)
        assert list(live.current.profiles) == ["default"]
        assert json.loads(live.store.path.read_text())["version"] == 3
        seen.cancel()

    run(work())


def test_a_turn_counts_the_time_that_was_waited_for_it() -> None:
    async def work() -> None:
        queue = ChangeQueue(max_waiting=1, wait_s=0.2)
        async with queue.turn() as first:
            assert 0 < first.left_s <= 0.2
            with pytest.raises(StoreBusyError, match=r"have taken 0\.2 s"):
                async with queue.turn():
                    pass
            assert first.left_s == 0
        async with queue.turn() as again:
            assert again.left_s > 0

    run(work())
