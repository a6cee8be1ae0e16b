"""Stalls of the event loop are seen, in every API process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uvloop
from prometheus_client import REGISTRY

from prefmix.server.telemetry.event_loop_metrics import BUCKETS, INTERVAL_S, follow

NAME = "prefmix_event_loop_delay_seconds"


def measured() -> dict[str, float]:
    """The histogram's samples: count, sum, and the delays above each limit."""
    count = REGISTRY.get_sample_value(f"{NAME}_count")
    total = REGISTRY.get_sample_value(f"{NAME}_sum")
    assert count is not None
    assert total is not None
    figures = {"count": count, "sum": total}
    for limit in BUCKETS:
        below = REGISTRY.get_sample_value(f"{NAME}_bucket", {"le": str(limit)})
        assert below is not None
        figures[f"above {limit}"] = count - below
    return figures


async def followed(stall_s: float) -> None:
    """Measures a loop that is blocked once."""
    task = asyncio.create_task(follow())
    await asyncio.sleep(3 * INTERVAL_S)
    time.sleep(stall_s)
    await asyncio.sleep(3 * INTERVAL_S)
    assert not task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_stall_is_one_measurement_of_its_length(make_loop: object) -> None:
    before = measured()
    with asyncio.Runner(loop_factory=make_loop) as runner:  # type: ignore[arg-type]
        runner.run(followed(0.5 + INTERVAL_S))
    after = measured()
    assert after["above 0.25"] - before["above 0.25"] >= 1
    assert after["sum"] - before["sum"] >= 0.5 - INTERVAL_S
    assert after["count"] - before["count"] >= 3  # before, over and after the stall


def test_the_stalls_of_several_processes_are_added(tmp_path: Path) -> None:
    """vLLM's API processes write to one folder, and /metrics of any of them reads it."""
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def run(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        return done.stdout

    observe = "from prefmix.server.telemetry import event_loop_metrics as m; m._DELAY.observe({})"
    run(observe.format(0.3))
    run(observe.format(0.7))
    page = run(
        "from prometheus_client import CollectorRegistry, generate_latest, multiprocess as m\n"
        "registry = CollectorRegistry(); m.MultiProcessCollector(registry)\n"
        "print(generate_latest(registry).decode())"
    )
    assert f'{NAME}_bucket{{le="0.25"}} 0.0' in page
    assert f'{NAME}_bucket{{le="0.5"}} 1.0' in page
    assert f"{NAME}_count 2.0" in page
