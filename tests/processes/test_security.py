"""An attacker's view of one running server: no key, no token, odd paths, and all that it prints."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from safetensors.torch import load_file

from prefmix.server.auth.access_levels import LEVELS, Level, check_levels
from support.server_process import ServerProcess, engine_flags

KEYS = {"old": "key-old-4c1f0a9be2d84f6f", "new": "key-new-7d3a5512c0b94e8a"}
ADMIN = "admin-9f2b6c7d8e1a4053"
SECRETS = (*KEYS.values(), ADMIN)
ROOT_PATH = "/api"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
PATHS = {re.sub(r"\{[^}]*\}", "x", path): level for path, level in LEVELS.items()}


class Server:
    """The server, with its secrets in files."""

    def __init__(self, folder: Path, policies: list[Path]) -> None:
        keys, token = folder / "keys", folder / "token"
        keys.write_text("".join(f"{name} {key}\n" for name, key in KEYS.items()))
        token.write_text(f"ops {ADMIN}\n")
        for path in (keys, token):
            path.chmod(0o600)
        words = [f"--policy={path.name}={path}" for path in policies]
        words += ["--weights-store", str(folder / "weights.json"), "--request-log=text"]
        self.folder = folder
        self.process = ServerProcess(
            folder,
            [*words, "--allow-unsafe-weights", *engine_flags(), f"--root-path={ROOT_PATH}"],
            PREFMIX_API_KEY_FILE=str(keys),
            PREFMIX_ADMIN_TOKEN_FILE=str(token),
            PREFMIX_LOG_LEVEL="debug",
        )

    @property
    def said(self) -> str:
        return self.process.stdout + self.process.stderr

    def raw(self, target: str, *headers: str, method: str = "GET") -> str:
        """The answer to a request line that no client library would send."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
        with socket.create_connection(("127.0.0.1", self.process.port), timeout=30) as stream:
            stream.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
            stream.settimeout(5)
            answer = b""
            try:
                while chunk := stream.recv(65536):
                    answer += chunk
            except TimeoutError:
                pass
        return answer.decode("latin-1")


@pytest.fixture(scope="module")
def server(policies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a safetensors folder and of one with a pickled file, which is allowed here."""
    folder = tmp_path_factory.mktemp("security")
    server = Server(folder, [policies[0], pickled(policies[1], folder / "pickled")])
    try:
        server.process.wait_ready()
        yield server
    finally:
        server.process.kill()


@pytest.fixture
def anyone(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.process.url, timeout=60) as client:
        yield client


def pickled(policy: Path, folder: Path) -> Path:
    """The same policy as transformers wrote it before safetensors."""
    shutil.copytree(policy, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_every_router_of_ours_is_listed() -> None:
    from prefmix.server.admin import routes as admin_routes
    from prefmix.server.api import generate, models
    from prefmix.server.console import routes as console_routes
    from prefmix.server.traffic import readiness

    for module in (admin_routes, models, console_routes, readiness, generate):
        check_levels(module.router.routes, admin_route=admin_routes.AdminRoute)


def test_every_route_asks_for_what_its_level_says(anyone: httpx.Client) -> None:
    for path, level in PATHS.items():
        for prefix, method in [("", method) for method in METHODS] + [(ROOT_PATH, "POST")]:
            strangers: list[dict[str, str]] = [{}]
            if method == "POST":
                strangers += [bearer("wrong"), {"Authorization": "Bearer"}]
                strangers += [{"Authorization": KEYS["new"]}]
                strangers += [bearer(ADMIN if level is Level.KEY else KEYS["new"])]
            for headers in strangers:
                status = anyone.request(method, prefix + path, headers=headers).status_code
                if level is Level.OPEN:
                    assert status != 401, (method, path)
                else:
                    assert status == 401, (method, path, headers)


def test_both_keys_and_the_token_open_their_side(anyone: httpx.Client) -> None:
    for key in KEYS.values():
        assert anyone.get("/v1/models", headers=bearer(key)).status_code == 200
    shown = anyone.get("/admin/weights", headers=bearer(ADMIN))
    assert (shown.status_code, shown.headers["cache-control"]) == (200, "no-store")


TRICKS = [
    "/v1/models/",
    "//v1/models",
    "/v1//models",
    "/v1/./models",
    "/./v1/models",
    "/v1/x/../models",
    "/V1/models",
    "/v1/MODELS",
    "/%76%31/models",
    "/v1%2fmodels",
    "/v1/models%2f",
    "/v1/models%00",
    "/v1/models%20",
    "/v1/models;x",
    "/v1/models?x=/health",
    "/v1/models#/health",
    "/health/../v1/models",
    "/health/%2e%2e/v1/models",
    "/health/..%2fv1/models",
    "/health%2f..%2f..%2fv1%2fmodels",
    "/health;/../v1/models",
    "/metrics/../v1/models",
    "/metrics/%2e%2e/v1/models",
    "/metrics/v1/models",
    "/metricsv1/models",
    "/static/../v1/models",
    "/static/%2e%2e/v1/models",
    "/static//v1/models",
    "/console/../v1/models",
    "/console/%2e%2e%2fv1%2fmodels",
    "/docs/../v1/models",
    "/openapi.json/../v1/models",
    "/api/v1/models",
    "/api//v1/models",
    "/apiv1/models",
    "/api/api/v1/models",
    "/api/../v1/models",
    "/api/health/../v1/models",
    "http://localhost/v1/models",
    "http://localhost/health/../v1/models",
    "http:///v1/models",
    "localhost:80/v1/models",
    "\\v1\\models",
    "/\\v1/models",
    "/health\\..\\v1\\models",
    "/v1/models",
    "*",
    "v1/models",
]


@pytest.mark.parametrize("target", TRICKS)
def test_no_way_to_write_a_path_leads_around_the_key(server: Server, target: str) -> None:
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        answer = server.raw(target, method=method)
        assert '"object":"list"' not in answer.replace(" ", "")
        assert "max_model_len" not in answer
        assert not re.match(r"HTTP/1\.1 5", answer), answer


@pytest.mark.parametrize(
    "target", ["/admin/weights", "/admin//weights", "/health/../admin/weights"]
)
def test_no_way_to_write_a_path_leads_around_the_token(server: Server, target: str) -> None:
    for extra in ((), (f"Authorization: Bearer {KEYS['new']}",)):
        answer = server.raw(target, *extra)
        assert re.match(r"HTTP/1\.1 (400|401|404)", answer), answer
        assert "sha256" not in answer


def test_a_header_sent_twice_or_folded_opens_nothing(server: Server) -> None:
    good = f"Authorization: Bearer {KEYS['new']}"
    assert "401" in server.raw("/v1/models", "Authorization: Bearer x", good).splitlines()[0]
    folded = server.raw("/v1/models", "Authorization: Bearer", f" {KEYS['new']}")
    assert not folded.startswith("HTTP/1.1 5")
    for header in (f"X-Api-Key: {KEYS['new']}", f"Cookie: key={KEYS['new']}"):
        assert "401" in server.raw("/v1/models", header).splitlines()[0]


def test_a_websocket_upgrade_needs_the_key(server: Server) -> None:
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA")
    for path in ("/v1/realtime", "/v1/completions", "/admin/weights", "/nowhere"):
        answer = server.raw(path, "Connection: Upgrade", *upgrade)
        assert re.match(r"HTTP/1\.1 4\d\d", answer), answer
    assert not server.raw("/health", "Connection: Upgrade", *upgrade).startswith("HTTP/1.1 101")


def test_no_other_page_of_a_browser_may_ask(anyone: httpx.Client) -> None:
    asks = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for path in ("/v1/completions", "/admin/weights/reload"):
        answer = anyone.options(path, headers=asks)
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers
    answer = anyone.get("/health", headers=asks)
    assert "access-control-allow-origin" not in answer.headers
    # What a form can send is not JSON.
    form = anyone.post(
        "/v1/completions",
        content="{}",
        headers={**bearer(KEYS["new"]), "Content-Type": "text/plain"},
    )
    assert form.status_code == 400


def test_pages_cannot_be_framed_and_load_nothing_from_elsewhere(anyone: httpx.Client) -> None:
    for path in ("/docs", "/console", "/console/main.js", "/openapi.json"):
        headers = anyone.get(path).headers
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
    page = anyone.get(f"{ROOT_PATH}/docs").text
    loaded = set(re.findall(r'(?:src|href)="([^"]+)"', page)) - {"data:,"}
    assert len(loaded) == 2
    for address in (*loaded, f"{ROOT_PATH}/openapi.json"):
        assert address.startswith(f"{ROOT_PATH}/")
        assert address in page
        assert anyone.get(address).status_code == 200
    assert "//" not in "".join(loaded)


def test_no_file_beside_the_scripts_is_served(server: Server) -> None:
    for path in (
        "../offline_docs.py",
        "%2e%2e/offline_docs.py",
        "..%2foffline_docs.py",
        "%2f/etc/passwd",
    ):
        for prefix in ("", ROOT_PATH):
            answer = server.raw(f"{prefix}/static/{path}")
            assert re.match(r"HTTP/1\.1 (400|401|404)", answer), answer


@pytest.fixture
def listener() -> Iterator[tuple[str, list[Any]]]:
    """An address of this machine, and the connections that were made to it."""
    seen: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        done = threading.Event()

        def accept() -> None:
            while not done.is_set():
                try:
                    seen.append(listening.accept())
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/x.png", seen
        done.set()
        thread.join()
    for connection, _ in seen:
        connection.close()


def test_no_address_in_a_request_is_fetched(
    anyone: httpx.Client, listener: tuple[str, list[Any]]
) -> None:
    address, seen = listener
    for url in (address, "file:///etc/passwd", "data:text/plain,x"):
        for kind in ("image_url", "video_url", "audio_url"):
            part = {"type": kind, kind: {"url": url}}
            body: dict[str, Any] = {"messages": [{"role": "user", "content": [part]}]}
            answer = anyone.post("/v1/chat/completions", json=body, headers=bearer(KEYS["new"]))
            assert answer.status_code == 400, answer.text
            assert "root:" not in answer.text
        item = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
        answer = anyone.post("/v1/responses", json={"input": [item]}, headers=bearer(KEYS["new"]))
        assert answer.status_code in (400, 422), answer.text
    tool = {"type": "mcp", "server_label": "x", "server_url": address}
    body = {"input": "hi", "max_output_tokens": 2, "tools": [tool]}
    answer = anyone.post("/v1/responses", json=body, headers=bearer(KEYS["new"]))
    assert answer.status_code < 500, answer.text
    assert seen == []


def test_a_requests_own_template_is_refused(anyone: httpx.Client) -> None:
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "chat_template": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    }
    answer = anyone.post("/v1/chat/completions", json=body, headers=bearer(KEYS["new"]))
    assert answer.status_code == 400, answer.text


def test_request_ids_forge_no_line_and_no_header(server: Server, anyone: httpx.Client) -> None:
    body = {"prompt": "hi", "max_tokens": 1}
    for given in ("a outcome=ok status=999", "b\x7f", "x" * 5000, "\xe9\x85"):
        headers = {**bearer(KEYS["new"]), "X-Request-Id": given}
        sent = {name: value.encode("latin-1") for name, value in headers.items()}
        answer = anyone.post("/v1/completions", json=body, headers=sent)
        if answer.status_code == 400 and "Invalid HTTP request" in answer.text:
            continue
        assert answer.status_code == 200, answer.text
        assert len(answer.headers["x-request-id"]) <= 128
        assert answer.headers["x-request-id"].isprintable()
    assert " status=999" not in re.sub(r'"[^"]*"', "", server.said)
    name = "x%0aprefmix%20audit:%20by=ops%20did=put:evil%20applied"
    anyone.put(f"/admin/profiles/{name}", json={"weights": {"one": 1}}, headers=bearer(ADMIN))
    lines = [line for line in server.process.stderr.splitlines() if "did=put:evil" in line]
    assert all('did="put:x\\nprefmix' in line for line in lines)


def test_failed_logins_are_counted_and_said(server: Server, anyone: httpx.Client) -> None:
    page = anyone.get("/metrics").text
    for surface in ("key", "admin"):
        match = re.search(rf'prefmix_auth_failures_total{{surface="{surface}"}} (\S+)', page)
        assert match is not None
        assert float(match[1]) > 0
    lines = [
        line for line in server.process.stderr.splitlines() if "prefmix audit: refused" in line
    ]
    assert any("API key" in line and "127.0.0.1" in line for line in lines)
    assert any("admin token" in line for line in lines)


def test_no_secret_in_anything_that_is_shown(server: Server, anyone: httpx.Client) -> None:
    shown = {"what it printed": server.said}
    for process in server.process.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            shown[f"command line of {process.pid}"] = " ".join(process.cmdline())
            shown[f"environment of {process.pid}"] = str(process.environ())
    assert len(shown) > 3
    every = {**bearer(KEYS["new"]), "X-Request-Id": "r"}
    for path, level in PATHS.items():
        shown[path] = anyone.get(path).text
        secret = ADMIN if level is Level.ADMIN else KEYS["new"]
        for method in ("GET", "POST", "PUT"):
            answer = anyone.request(method, path, content="{", headers=bearer(secret))
            shown[f"{method} {path} with its secret"] = answer.text + str(answer.headers)
    bad = anyone.post("/v1/completions", json={"prompt": 1, "api_key": "x"}, headers=every)
    shown["a refusal"] = bad.text
    for path in server.folder.rglob("*"):
        if (
            path.is_file()
            and path.name not in ("keys", "token")
            and path.suffix in (".json", ".txt")
        ):
            shown[str(path)] = path.read_text()
    leaks = [
        (where, secret) for where, text in shown.items() for secret in SECRETS if secret in text
    ]
    assert leaks == []


def test_a_server_that_crashes_shows_no_secret(server: Server) -> None:
    """The last test of this server: its engine is killed while a request runs."""
    with httpx.Client(base_url=server.process.url, headers=bearer(KEYS["new"])) as client:
        body = {"prompt": "hi", "max_tokens": 200, "ignore_eos": True, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            chunks = stream.iter_bytes()
            next(chunks)
            server.process.kill_engine()
            with contextlib.suppress(httpx.HTTPError):
                list(chunks)
    # vLLM by itself would end with exit code 0, and no supervisor would restart it.
    assert server.process.process.wait(timeout=120) == 1
    assert "RuntimeError: the engine's process died" in server.process.stderr
    assert server.process.survivors() == []
    assert [secret for secret in SECRETS if secret in server.said] == []
