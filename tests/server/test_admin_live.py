"""Weights that change while the demo policies serve: no request fails, none sees half a change."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefmix.server.auth.access_levels import LEVELS, Level
from prefmix.server.telemetry.engine_statistics import INTERVAL_S
from support.preloaded_server import Preloaded
from support.server_process import PREFMIX, ServerProcess, free_port

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "policies" / "demo" / "serve.yaml"
TOKEN = "admin-token-of-the-test"
KEY = "inference-key-of-the-test"
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""A context that plain HTTP never uses; without it every request would load all certificates."""
NUM_CLIENTS = 8
NUM_CHANGES = 200


class Live:
    """A server on the demo policies, with methods for its requests."""

    def __init__(
        self, folder: Path, *words: str, preloaded: Preloaded | None = None, **environ: str
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.store = folder / "weights.json"
        environ = {"PREFMIX_ADMIN_TOKEN": TOKEN, "VLLM_API_KEY": KEY, **environ}
        flags = [str(CONFIG), "--weights-store", str(self.store), *words]
        self.server = ServerProcess(folder, flags, preloaded=preloaded, **environ)
        self.admin_url = self.server.url

    def change(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """One admin request, on a connection of its own, which any API process may get."""
        headers = {"Authorization": f"Bearer {TOKEN}", **more}
        return httpx.request(
            method,
            f"{self.admin_url}/admin{path}",
            json=body,
            headers=headers,
            timeout=60,
            verify=PLAIN,
        )

    def complete(self, client: httpx.Client | None = None, **body: Any) -> httpx.Response:
        """One small completion."""
        body = {"prompt": "Review the Park Hotel.", "max_tokens": 8, **body}
        headers = {"Authorization": f"Bearer {KEY}"}
        url = f"{self.server.url}/v1/completions"
        if client is None:
            return httpx.post(url, json=body, headers=headers, timeout=60, verify=PLAIN)
        return client.post(url, json=body, headers=headers, timeout=60)

    def version(self) -> int:
        """The version that answers a request on a new connection."""
        return int(self.complete(max_tokens=1).headers["x-prefmix-weights-version"])


def served(
    folder: Path, *words: str, preloaded: Preloaded | None = None, **environ: str
) -> Iterator[Live]:
    """A server. Its end by one signal is a test, too: code 0 and no process left."""
    live = Live(folder, *words, preloaded=preloaded, **environ)
    try:
        live.server.wait_ready()
        yield live
        code = live.server.end(signal.SIGTERM)
        assert (code, live.server.survivors()) == (0, []), live.server.stderr
        assert "Traceback" not in live.server.stderr
    finally:
        live.server.kill()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, preloaded: Preloaded) -> Iterator[Live]:
    """One API process."""
    yield from served(tmp_path_factory.mktemp("live"), preloaded=preloaded)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Two API processes that measure every step, and the admin routes on a port of their own."""
    port = str(free_port())
    words = ["--admin-port", port, "--statistics-every", "1", "--", "--api-server-count=2"]
    for live in served(tmp_path_factory.mktemp("pair"), *words):
        live.admin_url = f"http://127.0.0.1:{port}"
        yield live


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
    change_under_load(live, num_changes=NUM_CHANGES)


def test_changes_of_two_processes_under_load(pair: Live) -> None:
    change_under_load(pair, num_changes=NUM_CHANGES // 10)


def change_under_load(live: Live, *, num_changes: int) -> None:
    """No request of 8 clients fails or reports a false version, and each is counted once."""
    answered = num_answered(live)
    first = live.version()
    weights_of: dict[int, str] = {}
    answers: list[tuple[str, str]] = []
    failures: list[str] = []
    is_over = threading.Event()

    def client(stays: bool) -> None:
        with httpx.Client() as connection:
            while not is_over.is_set():
                # A new connection may reach another process.
                response = live.complete(connection if stays else None)
                if response.status_code != 200:
                    failures.append(response.text)
                    return
                headers = response.headers
                answers.append((headers["x-prefmix-weights-version"], headers["x-prefmix-weights"]))

    put_s, visible_s = [], []
    clients = [threading.Thread(target=client, args=(n % 2,)) for n in range(NUM_CLIENTS)]
    for thread in clients:
        thread.start()
    try:
        for number in range(num_changes):
            started = time.perf_counter()
            changed = live.change(
                "PUT", "/profiles/balanced", {"weights": {"positive": number + 1, "polite": 1}}
            )
            put_s.append(time.perf_counter() - started)
            assert changed.json()["version"] == first + number + 1
            answer = live.complete(max_tokens=1)
            visible_s.append(time.perf_counter() - started)
            version = int(answer.headers["x-prefmix-weights-version"])
            assert version == first + number + 1, "the next request has the change"
            weights_of[version] = answer.headers["x-prefmix-weights"]
            share = f"positive={(number + 1) / (number + 2):.9g},"
            assert weights_of[version].startswith(share)
    finally:
        is_over.set()
        for thread in clients:
            thread.join(timeout=60)
    assert failures == []
    seen = Counter(int(version) for version, _ in answers)
    assert set(seen) <= {first, *weights_of}
    assert len(seen) > num_changes // 10, "the load ran while the changes were made"
    wait(lambda: num_answered(live) == answered + 1 + num_changes + len(answers))
    for version, weights in answers:
        if int(version) != first:
            assert weights == weights_of[int(version)], "version and weights are of one set"
    p99 = [statistics.quantiles(times, n=100)[98] * 1e3 for times in (put_s, visible_s)]
    print(
        f"{len(answers)} answers over {len(seen)} versions; p99 of a PUT {p99[0]:.1f} ms, of a PUT "
        f"and the next one-token answer {p99[1]:.1f} ms"
    )


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


def test_two_processes_agree(pair: Live) -> None:
    """Every new connection, whichever process it reaches, sees a change as soon as it is made."""
    assert httpx.get(f"{pair.server.url}/admin/weights").status_code == 404
    first = pair.version()
    put_s = []
    for number in range(20):
        started = time.perf_counter()
        changed = pair.change(
            "PUT", "/profiles/x", {"weights": {"polite": number + 1, "concise": 1}}
        )
        put_s.append(time.perf_counter() - started)
        assert changed.json()["version"] == first + number + 1, changed.text
        assert {pair.version() for _ in range(6)} == {first + number + 1}
    print(f"PUT with two API processes: median {statistics.median(put_s) * 1e3:.1f} ms")


def test_metrics_of_two_processes_are_one_account(pair: Live) -> None:
    """Both processes report the same account: nothing is missing, nothing counted twice."""

    def scrape() -> dict[str, float]:
        text = httpx.get(f"{pair.server.url}/metrics", verify=PLAIN).text
        lines = [line for line in text.splitlines() if line.startswith("prefmix_")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def grown(name: str) -> float:
        return scrape()[name] - before[name]

    tokens = "prefmix_statistics_tokens_total"
    time.sleep(INTERVAL_S + 1)  # until the measurements of earlier tests are fetched
    before = scrape()
    for _ in range(12):
        pair.complete(max_tokens=4, ignore_eos=True)
    wait(lambda: grown(tokens) >= 48)
    time.sleep(INTERVAL_S + 1)
    assert grown(tokens) == grown('prefmix_policy_tokens_total{policy="polite"}') == 48
    assert grown('prefmix_requests_total{outcome="ok",profile="balanced"}') == 12
    version = pair.version()
    # A process may learn just after its client that an answer has gone out.
    wait(lambda: scrape()["prefmix_requests_in_flight"] == 0)
    for _ in range(8):
        seen = scrape()
        assert seen["prefmix_weights_version"] == version
        assert seen["prefmix_requests_in_flight"] == 0
        assert seen['prefmix_default_profile{profile="balanced"}'] == 1


def test_the_admin_port_has_the_admin_routes_and_the_main_port_has_none(pair: Live) -> None:
    token = {"Authorization": f"Bearer {TOKEN}"}
    for listed, level in LEVELS.items():
        path = re.sub(r"\{[^}]*\}", "x", listed)
        without = httpx.put(pair.admin_url + path, verify=PLAIN).status_code
        if level is Level.ADMIN:
            assert without == 401
            main = httpx.get(pair.server.url + path, headers=token, verify=PLAIN)
            assert main.status_code == 404
        else:
            assert without == (405 if path == "/openapi.json" else 404)


def test_two_processes_follow_the_file_together(pair: Live) -> None:
    version = pair.version()
    words = ["weights", "set", "outside", "concise=1", "--weights-store", str(pair.store)]
    subprocess.run([str(PREFMIX), *words], check=True, capture_output=True, timeout=60)
    os.kill(pair.server.process.pid, signal.SIGHUP)
    wait(lambda: {pair.version() for _ in range(8)} == {version + 1})


def test_a_frozen_process_stops_every_change(pair: Live) -> None:
    """A change needs every API process, so one process that cannot answer stops it for all."""
    apis = [process for process in pair.server.family() if "APIServer" in process.name()]
    assert len(apis) == 2, [process.name() for process in pair.server.family()]
    before = pair.store.read_bytes()
    apis[0].suspend()
    try:
        for _ in range(10):  # until a connection reaches the process that is awake
            try:
                refused = httpx.put(
                    f"{pair.admin_url}/admin/profiles/y",
                    json={"weights": {"polite": 1}},
                    headers={"Authorization": f"Bearer {TOKEN}"},
                    timeout=10,
                )
                break
            except httpx.TimeoutException:
                continue
    finally:
        apis[0].resume()
    assert refused.status_code == 503
    assert "no answer within 5 s" in refused.json()["error"]["message"]
    assert pair.change("PUT", "/profiles/y", {"weights": {"polite": 1}}).status_code == 200
    assert pair.store.read_bytes() != before


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
        assert "console" not in live.server.stdout
        assert live.complete().headers["x-prefmix-weights-version"] == "1"


def num_answered(live: Live) -> float:
    """The answers that the server has counted, over all processes."""
    text = httpx.get(f"{live.server.url}/metrics", verify=PLAIN).text
    counts = re.findall(r'^prefmix_requests_total\{outcome="ok".*\} (\S+)$', text, re.M)
    return sum(map(float, counts))


def wait(is_true: Any, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
