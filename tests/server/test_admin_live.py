"""Weights that change while the demo policies serve: no request fails, none sees half a change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.admin_server import KEY, PLAIN, TOKEN, Live, change_under_load, served, wait
from support.preloaded_server import Preloaded
from support.server_process import PREFMIX


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, preloaded: Preloaded) -> Iterator[Live]:
    """One API process."""
    yield from served(tmp_path_factory.mktemp("live"), preloaded=preloaded)


def test_the_store_is_made_from_the_configuration(live: Live) -> None:
    stored = json.loads(live.store.read_text())
    assert (stored["format"], stored["default_profile"]) == (1, "balanced")
    assert stored["policies"] == ["positive", "concise", "polite", "reference"]
    shown = live.change("GET", "/weights").json()
    assert shown.pop("sha256")
    assert shown == json.loads(live.store.read_text())
    assert "admin" in live.server.stdout


def test_keys_and_tokens_open_their_own_side_only(live: Live) -> None:
    url = live.server.url
    for token in (None, KEY, "wrong"):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        for method, path in (
            ("GET", "/admin/weights"),
            ("PUT", "/admin/profiles/x"),
            ("POST", "/admin/weights/reload"),
        ):
            refused = httpx.request(method, url + path, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, 401)
    admin = {"Authorization": f"Bearer {TOKEN}"}
    for path in ("/v1/mixture", "/v1/models"):
        assert httpx.get(url + path, headers=admin).status_code == 401
    body = {"prompt": "a", "max_tokens": 1}
    assert httpx.post(f"{url}/v1/completions", json=body, headers=admin).status_code == 401


def test_routes_are_described_and_get_does_not_change(live: Live) -> None:
    paths = httpx.get(f"{live.server.url}/openapi.json").json()["paths"]
    admin = {path: set(methods) for path, methods in paths.items() if path.startswith("/admin")}
    assert admin == {
        "/admin/weights": {"get"},
        "/admin/weights/history": {"get"},
        "/admin/weights/apply": {"post"},
        "/admin/weights/rollback": {"post"},
        "/admin/weights/reload": {"post"},
        "/admin/profiles/{name}": {"put", "delete"},
        "/admin/default": {"put"},
        "/admin/policies": {"get"},
        "/admin/policies/{name}": {"put", "delete"},
    }
    for path, methods in admin.items():
        if "get" not in methods:
            refused = live.change("GET", path.removeprefix("/admin").replace("{name}", "balanced"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (405, 405)


def test_refusals_change_nothing(live: Live) -> None:
    before = live.store.read_bytes()
    put = {"weights": {"positive": 1}}
    stale = live.change("PUT", "/profiles/x", put, **{"If-Match": '"99"'})
    assert (stale.status_code, stale.json()["error"]["type"]) == (412, "PreconditionFailedError")
    for body in ({"weights": {"negative": 1}}, {"weights": {"positive": -1}}, {"wait": {}}):
        assert live.change("PUT", "/profiles/x", body).status_code == 400
    assert live.change("DELETE", "/profiles/nobody").status_code == 404
    assert live.change("PUT", "/profiles/x?dry_run=true", put).json()["changed"] is True
    assert live.store.read_bytes() == before
    assert live.complete(preference_profile="x").status_code == 400


def test_changes_under_load(live: Live) -> None:
    change_under_load(live, num_changes=60)


def test_a_stream_keeps_the_weights_it_began_with(live: Live) -> None:
    """The policy's greedy text is the same whether or not its profile is changed meanwhile."""
    live.change("PUT", "/profiles/solo", {"weights": {"polite": 1}})
    body = {
        "prompt": "Review the Park Hotel.",
        "max_tokens": 200,
        "temperature": 0,
        "ignore_eos": True,
        "preference_profile": "solo",
    }
    alone = live.complete(**body).json()["choices"][0]["text"]
    headers = {"Authorization": f"Bearer {KEY}"}
    pieces = []
    url = f"{live.server.url}/v1/completions"
    with httpx.stream("POST", url, json={**body, "stream": True}, headers=headers) as stream:
        for line in stream.iter_lines():
            if not line.startswith("data: {"):
                continue
            if not pieces:
                live.change("PUT", "/profiles/solo", {"weights": {"concise": 1}})
            pieces.append(json.loads(line[6:])["choices"][0]["text"])
    assert "".join(pieces) == alone
    assert live.complete(**body).json()["choices"][0]["text"] != alone


def test_a_file_put_in_place_and_a_signal_are_taken_up(live: Live) -> None:
    version = live.version()
    words = ["weights", "set", "outside", "concise=1", "--weights-store", str(live.store)]
    subprocess.run([str(PREFMIX), *words], check=True, capture_output=True, timeout=60)
    wait(lambda: live.version() == version + 1)
    # A bad file changes nothing, and readiness stays.
    good = live.store.read_bytes()
    live.store.write_text('{"format": 1,\n"version": x}')
    os.kill(live.server.process.pid, signal.SIGHUP)
    live.server.wait_said("by=SIGHUP did=reload refused", timeout=60)
    assert "weights.json line 2 column 12: not JSON" in live.server.stderr
    refused = live.change("POST", "/weights/reload")
    assert (refused.status_code, "line 2 column 12" in refused.text) == (400, True)
    assert live.complete(preference_profile="outside").status_code == 200
    assert httpx.get(f"{live.server.url}/health").status_code == 200
    metrics = httpx.get(f"{live.server.url}/metrics").text
    assert "prefmix_weights_last_reload_successful 0.0" in metrics
    live.store.write_bytes(good)
    assert live.change("POST", "/weights/reload").json()["version"] == version + 1
    metrics = httpx.get(f"{live.server.url}/metrics").text
    assert "prefmix_weights_last_reload_successful 1.0" in metrics
    assert f"prefmix_weights_version {version + 1}.0" in metrics


def test_the_command_works_on_the_server(live: Live, tmp_path: Path) -> None:
    def command(*words: str) -> str:
        run = subprocess.run(
            [str(PREFMIX), "weights", *words, "--url", live.server.url],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PREFMIX_ADMIN_TOKEN": TOKEN},
        )
        return f"{run.returncode} {run.stdout}{run.stderr}"

    version = live.version()
    assert command("set", "cli", "concise=1", "polite=3").startswith(f"0 version {version} -> ")
    assert command("default", "cli").startswith("0 version")
    assert "cli *" in command("show")
    fit = tmp_path / "fit.json"
    document = json.loads(live.store.read_text())
    document["profiles"] = {"fitted": {"weights": {"polite": 1}, "provenance": {"seed": 1}}}
    document["default_profile"] = "fitted"
    fit.write_text(json.dumps(document))
    assert command("validate", str(fit)).startswith("0 ")
    assert command("apply", str(fit)).startswith("0 version")
    assert command("apply", str(fit)).startswith("0 unchanged")
    assert "fitted" in command("diff")
    assert command("rollback").startswith("0 version")
    assert command("default", "nobody").startswith("1 prefmix: error: ")
    stale = command("set", "cli", "polite=1", "--if-match", "1")
    assert "refused (412)" in stale
    assert command("history").count("\n") > 5


def test_the_audit_log_names_who_and_what_but_no_token(live: Live) -> None:
    lines = [line for line in live.server.stderr.splitlines() if "prefmix audit: " in line]
    assert any("by=admin did=put:solo old=" in line and "applied" in line for line in lines)
    assert any("by=file-watch did=reload" in line for line in lines)
    assert TOKEN not in live.server.stderr + live.server.stdout
    assert KEY not in live.server.stderr + live.server.stdout


def test_without_a_token_there_are_no_admin_routes(tmp_path: Path, preloaded: Preloaded) -> None:
    environ = {"PREFMIX_ADMIN_TOKEN": "", "VLLM_API_KEY": ""}
    for live in served(tmp_path / "off", "--no-console", preloaded=preloaded, **environ):
        for method, path in (
            ("GET", "/weights"),
            ("PUT", "/profiles/x"),
            ("POST", "/weights/reload"),
        ):
            refused = live.change(method, path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, 404)
        assert "admin" not in live.server.stdout
        # This server is also the one without a console.
        assert httpx.get(f"{live.server.url}/console", verify=PLAIN).status_code == 404
        first = httpx.get(f"{live.server.url}/", headers={"accept": "text/html"}, verify=PLAIN)
        assert first.json()["links"].keys() & {"console", "mixture"} == {"mixture"}
        facts = dict(line.split(maxsplit=1) for line in live.server.stdout.splitlines() if line)
        assert "console" not in facts
        assert "console" not in facts["open"]
        assert live.complete().headers["x-prefmix-weights-version"] == "1"
