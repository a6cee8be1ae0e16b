"""The admin routes: access, answers and refusals."""

from __future__ import annotations

import getpass
import json
import logging
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import prometheus_client
import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.admin import policy_routes
from prefmix.server.admin.listener import MAX_BODY_BYTES, admin_app
from prefmix.server.admin.live_weights import LiveWeights
from prefmix.server.admin.routes import AdminRoute, AdminState, router
from prefmix.server.auth.tokens import Token, Tokens
from prefmix.server.telemetry import audit_log
from prefmix.weights.store.profiles import CurrentProfiles, build_profile_set
from prefmix.weights.store.store import WeightsStore

SPEC = MixtureSpec(
    policies=(Policy(name="a", model="x"), Policy(name="b", model="y")),
    reference=Policy(name="base", model="z"),
)
TOKENS = Tokens([Token.of("ops", "ops-secret"), Token.of("ci", "ci-secret")])
ALL = [*router.routes, *policy_routes.router.routes]
ROUTES = [
    (method, route.path_format)
    for route in ALL
    if isinstance(route, APIRoute)
    for method in sorted(route.methods)
]


class Admin:
    """The routes on a store of their own."""

    def __init__(self, folder: Path, *, has_store: bool = True) -> None:
        initial = build_profile_set({"even": {"a": 1, "b": 1}}, SPEC)
        self.store = WeightsStore(folder / "w.json", spec=SPEC)
        if has_store:
            self.store.create(initial)
        self.live = LiveWeights(
            spec=SPEC,
            profiles=CurrentProfiles(initial),
            store=self.store.path if has_store else None,
            folder=folder,
            num_processes=1,
        )
        self.client = TestClient(admin_app(AdminState(tokens=TOKENS, live=self.live)))

    def ask(
        self, method: str, path: str, body: Any = None, *, token: str = "ops-secret", **headers: str
    ) -> httpx.Response:
        headers["Authorization"] = f"Bearer {token}"
        content = None if body is None else json.dumps(body)
        if content is not None:
            headers["Content-Type"] = "application/json"
        return self.client.request(method, f"/admin{path}", content=content, headers=headers)

    def refused(self, response: httpx.Response, status: int, *parts: str) -> None:
        """Checks a refusal, and that it has changed nothing."""
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert [part for part in parts if part not in error["message"]] == [], error["message"]
        assert self.live.current.version == 1


@pytest.fixture
def admin(tmp_path: Path) -> Admin:
    return Admin(tmp_path)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The audit lines."""
    with caplog.at_level(logging.INFO, "prefmix.audit"):
        yield caplog


def test_every_route_is_an_admin_route() -> None:
    """The list is the contract's; a route added here must be protected like the others."""
    assert all(isinstance(route, AdminRoute) for route in ALL)
    assert set(ROUTES) == {
        ("GET", "/admin/weights"),
        ("GET", "/admin/weights/history"),
        ("PUT", "/admin/profiles/{name}"),
        ("DELETE", "/admin/profiles/{name}"),
        ("PUT", "/admin/default"),
        ("POST", "/admin/weights/apply"),
        ("POST", "/admin/weights/rollback"),
        ("POST", "/admin/weights/reload"),
        ("GET", "/admin/policies"),
        ("PUT", "/admin/policies/{name}"),
        ("DELETE", "/admin/policies/{name}"),
    }


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer inference-key"},
        {"Authorization": "Bearer ops-secret2"},
        {"Authorization": "Bearer ops-secre"},
        {"Authorization": "Basic ops-secret"},
        {"Authorization": "ops-secret"},
        {"X-Api-Key": "ops-secret"},
    ],
)
def test_every_route_needs_an_admin_token(
    admin: Admin, method: str, path: str, headers: dict[str, str]
) -> None:
    path = path.replace("{name}", "x")
    # The body is not even read: it is no JSON, and the answer does not say so.
    response = admin.client.request(
        method, path, content="{", headers={**headers, "Content-Type": "application/json"}
    )
    admin.refused(response, HTTPStatus.UNAUTHORIZED, "admin token")
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_get_changes_nothing(admin: Admin, method: str, path: str) -> None:
    if method == "GET":
        assert admin.ask("GET", path.removeprefix("/admin")).status_code == HTTPStatus.OK
        assert (admin.live.current.version, admin.store.versions()) == (1, [])
    else:
        response = admin.ask("GET", path.removeprefix("/admin").replace("{name}", "even"))
        admin.refused(response, HTTPStatus.METHOD_NOT_ALLOWED, "GET /admin/", "not served")


def test_a_profile_is_stored_and_in_force(admin: Admin, log: pytest.LogCaptureFixture) -> None:
    before = admin.live.current
    body = {"weights": {"a": 1, "b": 3}, "mixing": "logits", "provenance": {"seed": 4}}
    answer = admin.ask("PUT", "/profiles/x", body).json()
    after = admin.live.current
    assert answer == {
        "version": 2,
        "sha256": after.sha256,
        "previous_version": 1,
        "previous_sha256": before.sha256,
        "changed": True,
        "dry_run": False,
        "lost_mixings": {},
        "dormant": {},
        "set_aside": None,
    }
    assert after == admin.store.read()
    shown = admin.ask("GET", "/weights")
    assert shown.json()["profiles"]["x"] == {
        "weights": {"a": 0.25, "b": 0.75, "base": 0.0},
        "mixing": "logits",
        "provenance": {"seed": 4},
    }
    assert shown.headers["ETag"] == f'"{after.sha256}"'
    (line,) = log.messages
    assert line == (
        f"by=ops did=put:x old=1:{before.sha256[:12]} new=2:{after.sha256[:12]} applied"
    )
    assert "secret" not in log.text


def test_full_checkpoints_take_no_profile_that_mixes_parameters(admin: Admin) -> None:
    before = admin.live.current
    refused = admin.ask("PUT", "/profiles/x", {"weights": {"a": 1}, "mixing": "parameters"})
    assert refused.status_code == 400
    assert "full checkpoints have no parameters to mix" in refused.json()["error"]["message"]
    assert admin.live.current == admin.store.read() == before


def test_default_delete_and_rollback(admin: Admin, log: pytest.LogCaptureFixture) -> None:
    admin.ask("PUT", "/profiles/x", {"weights": {"a": 1}})
    assert admin.ask("PUT", "/default", {"profile": "x"}, token="ci-secret").json()["version"] == 3
    assert admin.live.current.default == "x"
    assert admin.ask("DELETE", "/profiles/even").json()["version"] == 4
    assert list(admin.live.current.profiles) == ["x"]
    assert admin.ask("POST", "/weights/rollback").json()["version"] == 5
    assert sorted(admin.live.current.profiles) == ["even", "x"]
    answer = admin.ask("POST", "/weights/rollback", {"version": 1}).json()
    assert (answer["version"], admin.live.current.profiles.keys()) == (6, {"even"})
    listed = admin.ask("GET", "/weights/history").json()["versions"]
    assert [entry["version"] for entry in listed] == [1, 2, 3, 4, 5, 6]
    assert listed[0]["sha256"] == listed[5]["sha256"] == answer["sha256"]
    authors = [entry["changed"]["by"] for entry in listed]
    assert authors == [getpass.getuser(), "ops", "ci", "ops", "ops", "ops"]
    whats = [message.split(" old=")[0] for message in log.messages]
    assert whats[1:] == [
        "by=ci did=default:x",
        "by=ops did=delete:even",
        "by=ops did=rollback:last",
        "by=ops did=rollback:1",
    ]


def test_equal_content_is_a_success_without_a_new_version(admin: Admin) -> None:
    answer = admin.ask("PUT", "/profiles/even", {"weights": {"a": 7, "b": 7}})
    assert answer.status_code == HTTPStatus.OK
    assert (answer.json()["version"], answer.json()["changed"]) == (1, False)


def test_a_document_is_merged_or_replaces(admin: Admin) -> None:
    fit = {
        "format": 1,
        "version": 1,
        "policies": ["b", "a"],
        "default_profile": "fitted",
        "profiles": {"fitted": {"weights": {"a": 0.2, "b": 0.8}, "provenance": {"seed": 1}}},
    }
    assert admin.ask("POST", "/weights/apply", fit).json()["version"] == 2
    merged = admin.live.current
    assert (merged.default, sorted(merged.profiles)) == ("even", ["even", "fitted"])
    assert merged.weights("fitted") == {"a": 0.2, "b": 0.8, "base": 0.0}
    assert admin.ask("POST", "/weights/apply?default=true", fit).json()["version"] == 3
    assert (admin.live.current.default, len(admin.live.current.profiles)) == ("fitted", 2)
    assert admin.ask("POST", "/weights/apply?replace=true", fit).json()["version"] == 4
    assert (admin.live.current.default, list(admin.live.current.profiles)) == ("fitted", ["fitted"])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/profiles/x", {"weights": {"a": 1}}),
        ("DELETE", "/profiles/even", None),
        ("PUT", "/default", {"profile": "even"}),
        ("POST", "/weights/rollback", None),
    ],
)
def test_stale_if_match_is_refused(admin: Admin, method: str, path: str, body: Any) -> None:
    for stale in ('"2"', '"' + "0" * 64 + '"', 'W/"9"', "nonsense"):
        response = admin.ask(method, path, body, **{"If-Match": stale})
        admin.refused(response, HTTPStatus.PRECONDITION_FAILED, "version 1")


def test_matching_if_match_passes(admin: Admin) -> None:
    for number, form in enumerate(['"{0}"', "{0}", '"{1}"', 'W/"{1}"', "*"], start=1):
        current = admin.live.current
        tag = form.format(current.version, current.sha256)
        body = {"weights": {"a": number, "b": 1}}
        answer = admin.ask("PUT", "/profiles/x", body, **{"If-Match": tag})
        assert answer.json()["version"] == number + 1


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/profiles/x", {"weights": {"a": 1}}),
        ("POST", "/weights/apply", None),
        ("POST", "/weights/reload", None),
    ],
)
def test_dry_run_changes_nothing(admin: Admin, method: str, path: str, body: Any) -> None:
    if path == "/weights/apply":
        body = {**admin.ask("GET", "/weights").json(), "default_profile": "z"}
        del body["sha256"]
        body["profiles"] = {"z": {"weights": {"b": 1}}}
    if path == "/weights/reload":
        other = build_profile_set({"z": {"a": 1}}, SPEC)
        WeightsStore(admin.store.path).change(lambda current: other)
    answer = admin.ask(method, path + "?dry_run=true", body).json()
    assert (answer["version"], answer["changed"], answer["dry_run"]) == (2, True, True)
    assert admin.live.current.version == 1
    assert list(admin.live.current.profiles) == ["even"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "parts"),
    [
        ("PUT", "/profiles/x", {"weights": {"c": 1}}, 400, ["'x'", "'c'", "a, b, base"]),
        ("PUT", "/profiles/x", {"weights": {"a": -1}}, 400, ["'x'", "-1", ">= 0"]),
        ("PUT", "/profiles/x", {"weights": {"a": float("nan")}}, 400, ["'x'", "NaN", "finite"]),
        ("PUT", "/profiles/x", {"weights": {"a": 0}}, 400, ["'x'", "positive"]),
        ("PUT", "/profiles/x", {"weights": [1, 0]}, 400, ["weights", "[1, 0]"]),
        ("PUT", "/profiles/x", {}, 400, ["weights is missing"]),
        ("PUT", "/profiles/x", {"weigths": {}}, 400, ["weigths", "not permitted"]),
        ("PUT", "/profiles/x", {"weights": {"a": 1}, "who": "me"}, 400, ["who"]),
        ("PUT", "/profiles/custom", {"weights": {"a": 1}}, 400, ["'custom'", "another name"]),
        ("PUT", "/profiles/a b", {"weights": {"a": 1}}, 400, ["'a b'", "letters"]),
        (
            "PUT",
            "/profiles/x",
            {"weights": {"a": 1}, "provenance": {"kl": float("inf")}},
            400,
            ["profiles.x.provenance", "NaN"],
        ),
        ("DELETE", "/profiles/nobody", None, 404, ["'nobody'", "even"]),
        ("DELETE", "/profiles/even", None, 400, ["'even'", "default"]),
        ("PUT", "/default", {"profile": "nobody"}, 404, ["'nobody'", "even"]),
        ("PUT", "/default", {"profile": 3}, 400, ["profile is 3"]),
        ("POST", "/weights/rollback", None, 404, ["earlier version", "none"]),
        ("POST", "/weights/rollback", {"version": 9}, 404, ["version 9", "none"]),
        ("POST", "/weights/rollback", {"version": "1"}, 400, ["version is '1'"]),
        ("POST", "/weights/rollback", {"version": 0}, 400, ["version is 0"]),
        ("POST", "/weights/apply", {"format": 2}, 400, ["document", "format is 2"]),
        ("PUT", "/profiles/x?dry_run=maybe", {"weights": {"a": 1}}, 400, ["dry_run is 'maybe'"]),
    ],
)
def test_refusals_say_what_came_and_what_is_allowed(
    admin: Admin, method: str, path: str, body: Any, status: int, parts: list[str]
) -> None:
    admin.refused(admin.ask(method, path, body), status, *parts)


def test_a_profile_that_loses_its_way_to_mix_is_named(admin: Admin) -> None:
    admin.ask("PUT", "/profiles/x", {"weights": {"a": 1}, "mixing": "logits"})
    for body in ({"weights": {"b": 1}}, {"weights": {"b": 1}, "mixing": None}):
        rehearsed = admin.ask("PUT", "/profiles/x?dry_run=true", body)
        assert rehearsed.json()["lost_mixings"] == {"x": "logits"}
    assert admin.ask("PUT", "/profiles/x", {"weights": {"b": 1}}).json()["lost_mixings"] == {
        "x": "logits"
    }
    assert admin.ask("PUT", "/profiles/x", {"weights": {"a": 1}}).json()["lost_mixings"] == {}
    undone = admin.ask("POST", "/weights/rollback", {"version": 2}).json()
    assert undone["lost_mixings"] == {}
    deleted = admin.ask("DELETE", "/profiles/x").json()
    assert deleted["lost_mixings"] == {}, "it is gone, and not changed"


def test_reload_reads_what_was_put_in_place(admin: Admin) -> None:
    outside = WeightsStore(admin.store.path)
    other = build_profile_set({"z": {"a": 1}}, SPEC)
    outside.change(lambda current: other)
    assert admin.live.current.version == 1
    answer = admin.ask("POST", "/weights/reload").json()
    assert (answer["version"], answer["changed"]) == (2, True)
    assert list(admin.live.current.profiles) == ["z"]
    assert admin.ask("POST", "/weights/reload").json()["changed"] is False


def document(**changes: Any) -> str:
    """A good store file, with some keys replaced."""
    good = {
        "format": 1,
        "version": 2,
        "policies": ["a", "b"],
        "default_profile": "odd",
        "profiles": {"odd": {"weights": {"a": 1}}},
    }
    return json.dumps({**good, **changes})


@pytest.mark.parametrize(
    ("text", "status", "parts"),
    [
        ("{", 400, ["w.json line 1 column 2", "not JSON"]),
        ("", 400, ["w.json line 1 column 1", "not JSON"]),
        (None, 409, ["w.json does not exist"]),
        (document(format=7), 400, ["w.json", "format is 7"]),
        (document(version=1), 400, ["w.json", "version is 1", "2 or more", "apply"]),
        (document(policies=["a", "c"]), 400, ["w.json", "a, c", "a, b, base"]),
        (document(profiles={"odd": {"weights": {"a": 2}}}), 400, ["profiles.odd", "sum to 2"]),
    ],
)
def test_a_bad_file_changes_nothing(
    admin: Admin,
    log: pytest.LogCaptureFixture,
    text: str | None,
    status: int,
    parts: list[str],
) -> None:
    good = admin.store.path.read_text()
    if text is None:
        admin.store.path.unlink()
    else:
        admin.store.path.write_text(text)
    for path in ("/weights/reload", "/weights/reload?dry_run=true"):
        admin.refused(admin.ask("POST", path), status, *parts)
    assert "by=ops did=reload refused: " in log.text
    assert prometheus("prefmix_weights_last_reload_successful") == 0
    admin.store.path.write_text(good)
    assert admin.ask("POST", "/weights/reload").json()["changed"] is False
    assert prometheus("prefmix_weights_last_reload_successful") == 1


def test_a_rollback_repairs_a_broken_file_from_what_is_in_force(
    admin: Admin, log: pytest.LogCaptureFixture
) -> None:
    admin.ask("PUT", "/profiles/x", {"weights": {"a": 1}})
    before = admin.live.current
    admin.store.path.write_text("{")
    refusal = admin.ask("PUT", "/profiles/y", {"weights": {"a": 1}})
    assert (refusal.status_code, "rollback" in refusal.text) == (400, True)
    answer = admin.ask("POST", "/weights/rollback").json()
    assert (answer["version"], answer["previous_version"], answer["changed"]) == (4, 2, True)
    assert (
        answer["sha256"] == before.sha256 == admin.live.current.sha256 == admin.store.read().sha256
    )
    assert Path(answer["set_aside"]).read_text() == "{"
    assert "old=2:" in log.messages[-1]
    assert log.messages[-1].endswith("applied, broken file kept as w.json.broken.4")
    assert admin.ask("POST", "/weights/rollback", {"version": 1}).json()["set_aside"] is None
    assert admin.live.current.version == 5


def prometheus(name: str) -> float | None:
    return prometheus_client.REGISTRY.get_sample_value(name)


def test_an_older_file_may_return_but_its_number_means_one_content(admin: Admin) -> None:
    """A deployment that is reverted puts an earlier file back; a fit's output starts at 1 again."""
    first = admin.store.path.read_text()
    admin.store.path.write_text(document(version=5))
    assert admin.ask("POST", "/weights/reload").json()["version"] == 5
    admin.store.path.write_text(document(version=1))
    refused = admin.ask("POST", "/weights/reload")
    assert refused.status_code == HTTPStatus.BAD_REQUEST
    assert "version is 1, but that number has been used" in refused.json()["error"]["message"]
    assert "raise it to 6 or more" in refused.json()["error"]["message"]
    assert admin.live.current.version == 5
    admin.store.path.write_text(first)
    assert admin.ask("POST", "/weights/reload").json()["version"] == 6, "above all that were seen"
    assert list(admin.live.current.profiles) == ["even"]
    assert admin.live.current == WeightsStore(admin.store.path, spec=SPEC).read()


def test_a_change_builds_on_the_file_not_on_memory(admin: Admin) -> None:
    """Profiles stored by another program are kept and put in force."""
    other = build_profile_set({"even": {"a": 1}, "z": {"a": 1}}, SPEC)
    WeightsStore(admin.store.path).change(lambda current: other)
    answer = admin.ask("PUT", "/profiles/x", {"weights": {"b": 1}}).json()
    assert answer["version"] == 3
    assert sorted(admin.live.current.profiles) == ["even", "x", "z"]
    assert admin.live.current == admin.store.read()


def test_a_no_op_on_the_file_still_puts_it_in_force(admin: Admin) -> None:
    other = build_profile_set({"even": {"a": 1}}, SPEC)
    WeightsStore(admin.store.path).change(lambda current: other)
    answer = admin.ask("PUT", "/profiles/even", {"weights": {"a": 1}}).json()
    assert (answer["version"], answer["changed"]) == (2, False)
    assert admin.live.current == admin.store.read()


def test_without_a_store_changes_are_refused(tmp_path: Path) -> None:
    admin = Admin(tmp_path, has_store=False)
    assert admin.ask("GET", "/weights").json()["version"] == 1
    for method, path, body in (
        ("PUT", "/profiles/x", {"weights": {"a": 1}}),
        ("POST", "/weights/reload", None),
        ("POST", "/weights/rollback", None),
        ("GET", "/weights/history", None),
    ):
        admin.refused(admin.ask(method, path, body), HTTPStatus.CONFLICT, "--weights-store PATH")


def test_the_routes_are_described(admin: Admin) -> None:
    description = admin.client.get("/openapi.json").json()
    assert set(description["paths"]) == {path for _, path in ROUTES}
    put = description["paths"]["/admin/profiles/{name}"]["put"]
    assert {parameter["name"] for parameter in put["parameters"]} == {"name", "dry_run", "if-match"}
    assert put["security"] == [{"admin token": []}]
    assert {"200", "401", "412"} <= set(put["responses"])


def test_the_audit_log_is_on_stderr_alone(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("prefmix.audit")
    try:
        audit_log.set_up()
        audit_log.refused("ops", "put:x", "two\nlines")
    finally:
        logger.handlers, logger.propagate = [], True
    out, err = capfd.readouterr()
    assert out == ""
    assert err.endswith('prefmix audit: by=ops did=put:x refused: "two\\nlines"\n')


def test_a_body_that_is_too_large_is_refused_before_it_is_kept(admin: Admin) -> None:
    body = b'{"weights": {"a": 1}, "provenance": {"x": "' + b"y" * MAX_BODY_BYTES + b'"}}'
    headers = {"Authorization": "Bearer ops-secret", "Content-Type": "application/json"}
    response = admin.client.put("/admin/profiles/x", content=body, headers=headers)
    admin.refused(response, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(MAX_BODY_BYTES))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('{"weights": {"a": 1, "b": 1, "a": 9}}', "names 'a' more than once"),
        ('{"weights": {"a": 1}, "weights": {"b": 1}}', "names 'weights' more than once"),
        (json.dumps({str(number): 1 for number in range(257)}), "257 fields"),
        ('{"weights": ' * 200, "levels deep"),
        ('{"weights": {"a": [' + "[]," * 70_000 + "1]}}", "strings, lists and objects"),
    ],
)
def test_a_body_is_read_within_limits_and_names_a_field_once(
    admin: Admin, content: str, part: str
) -> None:
    headers = {"Authorization": "Bearer ops-secret", "Content-Type": "application/json"}
    response = admin.client.put("/admin/profiles/x", content=content, headers=headers)
    admin.refused(response, HTTPStatus.BAD_REQUEST, part)


@pytest.mark.parametrize(
    "name", ["..%2f..%2fetc%2fpasswd", "%2e%2e", "a%0ab", "a%00b", "a%20b", "%c3%a9", "a" * 65]
)
def test_names_are_names_and_no_paths(
    admin: Admin, log: pytest.LogCaptureFixture, name: str
) -> None:
    response = admin.ask("PUT", f"/profiles/{name}", {"weights": {"a": 1}})
    assert response.status_code in (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND), response.text
    assert admin.live.current.version == 1
    assert all("\n" not in record.getMessage() for record in log.records)


def test_answers_are_not_kept_by_browsers_or_framed(admin: Admin) -> None:
    for token in ("ops-secret", "wrong"):
        headers = admin.ask("GET", "/weights", token=token).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


def test_the_admin_port_has_no_page_with_scripts_from_elsewhere(admin: Admin) -> None:
    for path in ("/docs", "/redoc", "/", "/console", "/health", "/v1/models"):
        assert admin.client.get(path).status_code == HTTPStatus.NOT_FOUND
