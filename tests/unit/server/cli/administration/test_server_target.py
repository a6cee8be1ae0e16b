"""`--url` of commands: the admin token goes to the server that was named, and nowhere else."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from prefmix.server.cli.administration.server_target import ServerTarget
from prefmix.server.cli.main import main
from prefmix.weights.engines.proxies import is_this_machine, may_use_proxy
from prefmix.weights.engines.remote import RemoteEngine, RemoteError
from prefmix.weights.store.format import document, spec_of_members
from prefmix.weights.store.profiles import build_profile_set

TOKEN = "the-admin-token"
PROFILES = build_profile_set({}, spec_of_members(["a", "b"]))


@dataclass
class Listener:
    """A plain HTTP server, and what came to it."""

    port: int
    answer: Any
    location: str | None = None
    heads: list[str] = field(default_factory=list)


@contextlib.contextmanager
def listening(answer: Any, location: str | None = None) -> Iterator[Listener]:
    """Answers every request alike: with JSON, or with a redirect to a location."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.heads.append(f"{self.requestline}\n{self.headers}")
            content = json.dumps(answer).encode()
            self.send_response(200 if location is None else 307)
            self.send_header("Content-Length", str(len(content)))
            if location is not None:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(content)

        do_CONNECT = do_GET
        do_PUT = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Listener(server.server_port, answer, location)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """A proxy that the environment names for everything."""
    with listening(document(PROFILES)) as found:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            for spelling in (name, name.upper()):
                monkeypatch.setenv(spelling, f"http://127.0.0.1:{found.port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield found


def test_the_token_goes_to_the_server_and_not_to_a_proxy(proxy: Listener) -> None:
    with listening(document(PROFILES)) as server:
        for host in ("127.0.0.1", "localhost", "127.1.2.3", "0.0.0.0"):
            with contextlib.suppress(ValueError):  # an address that does not reach the listener
                ServerTarget(f"http://{host}:{server.port}", TOKEN).read()
    assert len(server.heads) >= 2
    assert all(f"Bearer {TOKEN}" in head for head in server.heads)
    assert proxy.heads == []


def test_no_plain_request_goes_through_a_proxy(proxy: Listener) -> None:
    """Whatever host is named: the proxy would read the token."""
    with pytest.raises(ValueError, match="cannot reach"):
        ServerTarget("http://prefmix.invalid:8000", TOKEN).read()
    assert proxy.heads == []


def test_a_proxy_of_https_sees_a_tunnel_without_the_token(proxy: Listener) -> None:
    with pytest.raises(ValueError, match=r"prefmix\.invalid"):
        ServerTarget("https://prefmix.invalid:8000", TOKEN).read()
    (head,) = proxy.heads
    assert head.startswith("CONNECT prefmix.invalid:8000")
    assert TOKEN not in head
    with pytest.raises(ValueError, match="cannot reach"):
        ServerTarget("https://127.0.0.1:1", TOKEN).read()
    assert len(proxy.heads) == 1, "this machine is not reached by way of another"


def test_the_token_follows_no_redirect(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFMIX_ADMIN_TOKEN", TOKEN)
    with (
        listening(document(PROFILES)) as other,
        listening({}, location=f"http://127.0.0.1:{other.port}/") as server,
    ):
        for words in (["show"], ["set", "x", "a=1"]):
            assert main(["weights", *words, "--url", f"http://127.0.0.1:{server.port}"]) == 1
            assert "redirects elsewhere, and the token is not sent" in capsys.readouterr().err
        assert len(server.heads) == 2
        assert other.heads == []


def test_a_fit_sends_its_key_to_the_server_alone(proxy: Listener) -> None:
    with (
        listening({}) as other,
        listening({}, location=f"http://127.0.0.1:{other.port}/") as server,
    ):
        with pytest.raises(RemoteError, match="answered 307"):
            RemoteEngine(f"http://127.0.0.1:{server.port}", api_key="the-key")
        with pytest.raises(RemoteError, match="does not answer"):
            RemoteEngine("http://prefmix.invalid:8000", api_key="the-key")
        assert (len(server.heads), other.heads, proxy.heads) == (1, [], [])


@pytest.mark.parametrize(
    ("host", "is_this"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("::", True),
        ("fe80::1%lo", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_addresses_of_this_machine(host: str, is_this: bool) -> None:
    assert is_this_machine(host) is is_this
    url = f"https://[{host}]:1" if ":" in host else f"https://{host}:1"
    assert may_use_proxy(url) is not is_this
    assert may_use_proxy(url.replace("https", "http")) is False
