"""One server on the demo policies in all scenarios; `PREFMIX_RESILIENCE=full` is the long form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from resilience.harness import tally
from resilience.harness.demo_server import DemoServer
from resilience.harness.scale import IS_FULL, scaled
from resilience.scenarios import fuzz, hostile_client, interleaving, kills, mixed_run, soak
from resilience.scenarios.openapi_fuzz import run_schemathesis


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """A server. Its end by one signal is a test, too: code 0, no process left, no traceback."""
    running = DemoServer(tmp_path_factory.mktemp("demo"))
    try:
        yield running.start()
        running.assert_sound()
        assert (running.stop(), running.server.survivors()) == (0, [])
        assert "Traceback" not in running.server.stderr
    finally:
        running.kill()


def test_requests_of_every_shape_while_weights_change(demo: DemoServer) -> None:
    """Every request ends in one way, and all accounts agree."""
    text, figures = mixed_run.run(
        demo,
        num_requests=scaled(short=300, full=10_000),
        num_changes=scaled(short=20, full=500),
    )
    tally.REPORTS.append(text)
    assert figures["ended_answered"] > figures["requests"] / 2
    assert figures["ended_by_client"] > 0


def test_promises_hold_after_every_step_of_an_interleaving(demo: DemoServer) -> None:
    """Two writers, streams, broken files, signals, kills: in an order drawn by a seed."""
    for seed in range(scaled(short=1, full=3)):
        text, _ = interleaving.run(
            demo,
            num_steps=scaled(short=60, full=400),
            num_restarts=scaled(short=0, full=2),
            seed=seed,
        )
    tally.REPORTS.append(text)


def test_hostile_bytes_do_no_harm(demo: DemoServer) -> None:
    """The server answers without 5xx or traceback, and afterwards gives the right answer."""
    text, figures = fuzz.run(demo, num_inputs=scaled(short=600, full=4000))
    tally.hostile("raw HTTP and fields", figures["inputs"])
    tally.REPORTS.append(text)


def test_a_hostile_client_stops_stalls_grows_and_fools_nothing(demo: DemoServer) -> None:
    """Each request has a budget; the server is as before after every batch."""
    text, figures = hostile_client.run(demo, share=scaled(short=2, full=100) / 100)
    tally.hostile("hostile client", figures["inputs"])
    tally.REPORTS.append(text)


def test_the_server_keeps_to_its_own_description(demo: DemoServer, tmp_path: Path) -> None:
    """schemathesis against /openapi.json: no 5xx, no answer that the description lacks."""
    figures = run_schemathesis(demo, tmp_path, examples=scaled(short=8, full=100))
    tally.hostile("schemathesis", figures["cases"])


def test_memory_stays_flat(demo: DemoServer) -> None:
    text, figures = soak.run(
        demo,
        seconds=scaled(short=45, full=3600),
        warm_up_s=scaled(short=15, full=300),
        visits_sizes=IS_FULL,
    )
    tally.REPORTS.append(text)
    # A minute after the start cannot tell a leak from caches that fill, except a gross one.
    limit = soak.LIMIT_MIB_PER_10K if IS_FULL else 400
    assert figures["rss_mib_per_10k"] < limit


def test_kills_lose_nothing(demo: DemoServer, tmp_path: Path) -> None:
    figures = kills.kill_writers(tmp_path, times=scaled(short=10, full=150), seed=0)
    figures |= kills.kill_fits(tmp_path, times=scaled(short=2, full=40), seed=0)
    figures |= kills.kill_servers(demo, times=scaled(short=1, full=10), seed=0)
    tally.REPORTS.append("\n".join(f"{name:<28}{value:>10}" for name, value in figures.items()))
