"""Policies that come and go on a running server; `PREFMIX_RESILIENCE=full` is the long form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from resilience.harness import tally
from resilience.harness.policy_server import PolicyServer
from resilience.harness.scale import scaled
from resilience.scenarios import policies_run, policy_kills
from support.preloaded_server import Preloaded


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, preloaded: Preloaded
) -> Iterator[PolicyServer]:
    """A server that is not started yet."""
    found = PolicyServer(tmp_path_factory.mktemp("policies"), preloaded=preloaded)
    yield found
    found.kill()


def test_policies_come_and_go_under_load(server: PolicyServer) -> None:
    """No request fails that names what there is, every answer is exact, and memory stays flat."""
    try:
        text, figures = policies_run.run(
            server.start(),
            num_changes=scaled(short=30, full=200),
            num_alone=scaled(short=20, full=200),
            warm_up_s=scaled(short=5, full=60),
            most_compared=scaled(short=150, full=2000),
        )
        assert (server.stop(), server.server.survivors()) == (0, [])
        assert "Traceback" not in server.server.stderr
    finally:
        server.kill()
    tally.REPORTS.append(text)
    assert figures["named_a_removed_policy"] < figures["answered"] / 10
    assert figures["versions_answered"] >= scaled(short=20, full=150)
    assert figures["mib_of_second_half_alone"] < policies_run.LIMIT_MIB_ALONE
    assert figures["mib_grown_under_load"] < scaled(short=600, full=policies_run.LIMIT_MIB)


def test_a_server_killed_in_a_change_has_the_policies_before_or_after_it(
    server: PolicyServer,
) -> None:
    times = scaled(short=2, full=50)
    text, figures = policy_kills.run(server, times=times)
    tally.REPORTS.append(text)
    assert figures["kills"] == times
