"""Changes take the queries that are documented and no others: a mistyped dry run makes none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from prefmix.server.admin import policy_routes, routes
from support.runtime.policies_server import FakeSlots, Server, write

CHANGES = [
    (method, route.path_format.removeprefix("/admin"))
    for route in (*routes.router.routes, *policy_routes.router.routes)
    if isinstance(route, APIRoute)
    for method in sorted(route.methods - {"GET"})
]
TAKES_DRAIN = {
    ("POST", "/weights/rollback"),
    ("PUT", "/policies/{name}"),
    ("DELETE", "/policies/{name}"),
}


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """Every body below changes something there."""
    found = Server(tmp_path, FakeSlots())
    for path, body in (
        ("/policies/q", write(tmp_path, "q")),
        ("/profiles/q", {"weights": {"a": 1}}),
        ("/profiles/r", {"weights": {"a": 1}}),
    ):
        assert found.ask("PUT", path, body).status_code == 200
    write(tmp_path, "q", b"2")
    return found


def asked(server: Server, method: str, path: str, query: str) -> Any:
    bodies = {
        "/profiles/{name}": {"weights": {"a": 1, "base": 1}},
        "/default": {"profile": "r"},
        "/policies/{name}": {"adapter": "q"},
        "/weights/apply": {"format": 1, "profiles": {}},
    }
    body = bodies.get(path) if method != "DELETE" else None
    return server.ask(method, f"{path.replace('{name}', 'q')}?{query}", body)


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_a_change_refuses_a_query_that_it_does_not_take(
    server: Server, method: str, path: str
) -> None:
    before = server.profiles.current.version
    allowed = "drain, dry_run" if (method, path) in TAKES_DRAIN else "dry_run"
    for query, words in (
        ("foo=1", f"the query has 'foo', which this route does not take; allowed: {allowed}"),
        ("dryrun=true", "the query has 'dryrun'"),
        ("dry_run=true&DRY_RUN=true", "the query has 'DRY_RUN'"),
        ("dry_run=true&dry_run=false", "the query names dry_run 2 times; name it once"),
        ("dry_run=true&dry_run=true", "the query names dry_run 2 times"),
        ("wait=1", "the query has 'wait'"),
    ):
        refused = asked(server, method, path, query)
        assert refused.status_code == 400, (query, refused.text)
        message = refused.json()["error"]["message"]
        if path == "/weights/apply":
            words = words.replace("allowed: dry_run", "allowed: replace, default, dry_run")
        assert words in message
        assert server.profiles.current.version == server.store.read().version == before


def test_a_refusal_comes_after_the_token_and_looks_take_any_query(server: Server) -> None:
    other = server.ask("DELETE", "/policies/q?foo=1", Authorization="Bearer other")
    assert other.status_code == 401
    assert server.ask("GET", "/policies?foo=1").status_code == 200
    tried = server.ask("DELETE", "/policies/q?drain=true&dry_run=true")
    assert (tried.status_code, tried.json()["dry_run"]) == (200, True), tried.text


@pytest.mark.parametrize("value", ["no", "false", 0, 1, "true", []])
def test_a_kind_of_slot_is_true_or_false(server: Server, value: Any) -> None:
    refused = server.ask("PUT", "/policies/new", {"adapter": "q", "kv_cache": value})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "kv_cache"
    assert "kv_cache" in refused.json()["error"]["message"]
