"""Engines of other machines are called, and a lost one ends the server."""

from __future__ import annotations

import asyncio
import sys
import types
from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.mixing.wire import PULSE_METHOD
from prefmix.server import remote_engines
from prefmix.server.remote_engines import follow, remote_ranks


def client(ranks: list[int], *, local: int = 1, **parallel: Any) -> Any:
    """An engine client of engines that answer unless their rank is in `lost`."""
    called: list[int] = []
    lost: set[int] = set()

    async def call(method: str, most_s: float, *, engine: bytes) -> None:
        assert method == PULSE_METHOD
        assert most_s == remote_engines.LOST_S
        rank = int.from_bytes(engine, "little")
        called.append(rank)
        if rank in lost:
            await asyncio.Event().wait()

    parallel_config = {
        "local_engines_only": False,
        "data_parallel_backend": "mp",
        "data_parallel_size_local": local,
        **parallel,
    }
    core = SimpleNamespace(
        _call_utility_async=call,
        engine_ranks_managed=ranks,
        resources=SimpleNamespace(engine_dead=False),
        outputs_queue=asyncio.Queue(),
    )
    return SimpleNamespace(
        engine_core=core,
        vllm_config=SimpleNamespace(parallel_config=SimpleNamespace(**parallel_config)),
        errored=False,
        called=called,
        lost=lost,
    )


def test_the_engines_of_this_machine_are_vllms_to_watch() -> None:
    assert remote_ranks(client([0])) == []
    assert remote_ranks(client([0, 1, 2, 3], local=2)) == [2, 3]
    assert remote_ranks(client([0, 1], local=0)) == [0, 1]
    assert remote_ranks(client([2, 3], local=2, local_engines_only=True)) == []
    assert remote_ranks(client([0, 1], data_parallel_backend="ray")) == []


def test_a_lost_engine_ends_the_server_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote_engines, "PULSE_S", 0.01)
    monkeypatch.setattr(remote_engines, "LOST_S", 0.3)
    module = types.ModuleType("vllm.v1.engine.exceptions")
    module.EngineDeadError = RuntimeError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    engines = client([0, 1, 2])

    async def run() -> None:
        task = asyncio.create_task(follow(engines))
        await asyncio.sleep(0.2)
        assert set(engines.called) == {1, 2}
        assert not engines.engine_core.resources.engine_dead
        engines.lost.add(2)
        error = await asyncio.wait_for(engines.engine_core.outputs_queue.get(), 30)
        assert isinstance(error, RuntimeError)
        assert engines.engine_core.resources.engine_dead
        engines.errored = True
        await asyncio.wait_for(task, 30)

    asyncio.run(run())
    (said,) = capsys.readouterr().err.splitlines()
    assert "prefmix: engine 2, which another machine runs, has not answered for " in said


def test_a_server_that_ends_in_order_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    engines = client([0, 1])

    async def raises(*_: object, **__: object) -> None:
        engines.errored = True
        raise RuntimeError("Server shutting down")

    engines.engine_core._call_utility_async = raises
    asyncio.run(follow(engines))
    assert capsys.readouterr().err == ""
    assert not engines.engine_core.resources.engine_dead
