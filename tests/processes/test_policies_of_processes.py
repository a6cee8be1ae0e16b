"""Policies come into two API processes and two data-parallel engines: into all or none."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import psutil
import pytest

from resilience.harness.policy_server import OWN, PolicyServer, completion
from resilience.scenarios import policies_run
from support.preloaded_server import Preloaded


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, preloaded_pair: Preloaded
) -> Iterator[PolicyServer]:
    flags = ["--api-server-count=2", "--data-parallel-size=2"]
    found = PolicyServer(tmp_path_factory.mktemp("group"), *flags, preloaded=preloaded_pair)
    try:
        yield found.start()
        assert (found.stop(), found.server.survivors()) == (0, [])
        assert "Traceback" not in found.server.stderr
    finally:
        found.kill()


def readers(server: PolicyServer) -> list[psutil.Process]:
    """The processes that read adapters, one for each engine."""
    family = [each for each in server.server.family() if each.is_running()]
    workers = [each for each in family if "Worker" in each.name()]
    return workers or [each for each in family if "EngineCore" in each.name()]


def listings(server: PolicyServer) -> list[object]:
    """The policies as both API processes list them: each connection may reach another."""
    return [server.admin("GET", "/policies").body for _ in range(12)]


def test_an_adapter_that_one_engine_cannot_read_is_in_none(server: PolicyServer) -> None:
    before = server.admin("GET", "/policies").body
    engines = readers(server)
    assert len(engines) == 2, [each.name() for each in server.server.family()]
    limits = engines[1].rlimit(resource.RLIMIT_NOFILE)
    engines[1].rlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # it cannot open a file now
    try:
        refused = server.admin("PUT", "/policies/careful", {"adapter": "step-0"})
    finally:
        engines[1].rlimit(resource.RLIMIT_NOFILE, limits)
    assert refused.status == 400, refused
    message = refused.body["error"]["message"]
    assert "policy 'careful'" in message
    assert "\n" not in message
    assert all(each == before for each in listings(server))
    for mixing in ("logits", "parameters"):
        unknown = server.complete(completion((5, 6), {OWN: 1.0, "careful": 1.0}, mixing))
        assert unknown.status == 400


def test_answers_of_all_processes_are_exact_while_policies_change(server: PolicyServer) -> None:
    _, figures = policies_run.run(
        server, num_changes=8, num_alone=0, warm_up_s=0, num_clients=8, most_compared=150
    )
    assert figures["versions_answered"] > 4
