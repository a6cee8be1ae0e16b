"""/ready names the reason to wait."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from prefmix.server.traffic import readiness
from prefmix.server.traffic.admission_control import AdmissionController, OverloadedError
from prefmix.server.traffic.drain import Drain
from prefmix.server.traffic.readiness import READINESS_KEY, Readiness
from prefmix.server.traffic.shared_counts import SharedCounts


class Engine:
    """The part of vLLM's client that readiness asks."""

    errored = False
    hangs = False

    async def is_sleeping(self) -> bool:
        while self.hangs:
            await asyncio.sleep(0.01)
        return False


def make(folder: Path, engine: Engine, *, num_processes: int = 1) -> tuple[Readiness, Drain]:
    counts = SharedCounts(folder, num_processes=num_processes)
    counts.start()
    drain = Drain(timeout_s=1, unfinished=lambda: 0)
    door = AdmissionController(counts, max_running=1, num_engines=1, max_waiting=0)
    return Readiness(engine, counts, drain, door), drain


async def until(is_so: Callable[[], object], limit_s: float = 60) -> None:
    async with asyncio.timeout(limit_s):
        while not is_so():
            await asyncio.sleep(0.01)


def ask(found: Readiness) -> tuple[int, object]:
    app = FastAPI()
    app.include_router(readiness.router)
    setattr(app.state, READINESS_KEY, found)
    answer = TestClient(app).get("/ready")
    return answer.status_code, answer.json()


def test_a_server_with_all_it_needs_is_ready(tmp_path: Path) -> None:
    found, _ = make(tmp_path, Engine())
    assert ask(found) == (200, {"ready": True, "missing": []})


def test_an_end_and_a_dead_engine_are_named(tmp_path: Path) -> None:
    engine = Engine()
    found, drain = make(tmp_path, engine)
    drain.is_on = True
    engine.errored = True
    missing = ["the server is ending", "the engine has died"]
    assert ask(found) == (503, {"ready": False, "missing": missing})


def test_all_api_processes_have_to_start(tmp_path: Path) -> None:
    found, _ = make(tmp_path, Engine(), num_processes=2)
    assert ask(found) == (503, {"ready": False, "missing": ["1 of 2 API processes have started"]})
    SharedCounts(tmp_path, process=1, num_processes=2).start()
    assert ask(found)[0] == 200


def test_an_engine_that_does_not_answer_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "SILENCE_S", 0.2)
    monkeypatch.setattr(readiness, "PULSE_S", 0.01)
    engine = Engine()
    found, _ = make(tmp_path, engine)

    async def follow() -> list[list[str]]:
        seen = []
        task = asyncio.create_task(found.follow())
        for engine.hangs in (True, False, True):
            await until(lambda: bool(found.missing()) == engine.hangs)
            seen.append(found.missing())
        task.cancel()
        return seen

    silent, answering, silent_again = asyncio.run(follow())
    assert answering == []
    for (phrase,) in (silent, silent_again):
        assert phrase.startswith("the engine has not answered for")


def test_a_server_that_only_refuses_is_not_ready_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(readiness, "REFUSING_S", 2)
    monkeypatch.setattr(readiness, "PULSE_S", 0.01)
    monkeypatch.setattr(logging.getLogger("prefmix.readiness"), "propagate", True)
    counts = SharedCounts(tmp_path)
    counts.start()
    door = AdmissionController(counts, max_running=1, num_engines=1, max_waiting=0)
    found = Readiness(Engine(), counts, Drain(timeout_s=1, unfinished=lambda: 0), door)

    async def follow() -> None:
        task = asyncio.create_task(found.follow())
        held = door.reserve(1)
        await asyncio.sleep(0.3)
        assert found.missing() == [], "busy, but nobody was refused"
        with pytest.raises(OverloadedError):
            door.check()
        assert found.missing() == [], "a moment is no reason"
        await until(found.missing)
        (phrase,) = found.missing()
        assert re.fullmatch(
            r"every request has been refused for \d+ s and none has ended: 1 answers are in flight",
            phrase,
        )
        await until(lambda: (REGISTRY.get_sample_value("prefmix_refusing_seconds") or 0) > 2)
        held.release()
        assert found.missing() == []
        await until(lambda: REGISTRY.get_sample_value("prefmix_refusing_seconds") == 0)
        task.cancel()

    asyncio.run(follow())
    said = [record.getMessage() for record in caplog.records]
    assert [line[:18] for line in said] == ["not ready: every r", "requests are admit"]
