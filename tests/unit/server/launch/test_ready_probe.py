"""The probe tells a server that serves the mixture from one that came up without it."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefmix.server.launch.ready_probe import Address, ProbeError, ReadyProbe, check_answer

SHA = "abc123"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers like the server under test, with the status and body set on the class."""

    status = 200
    body = json.dumps({"sha256": SHA}).encode()
    keys: list[str | None]

    def do_GET(self) -> None:
        type(self).keys.append(self.headers["Authorization"])
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[http.server.HTTPServer, type[Handler]]]:
    handler = type("Answer", (Handler,), {"keys": []})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        yield server, handler


def outcome(server: http.server.HTTPServer, *, listening_first: bool = True) -> str:
    """The probe's report: `ready` or the failure."""
    reported: list[str] = []
    done = threading.Event()

    def report(what: str) -> None:
        reported.append(what)
        done.set()

    address = Address(host="127.0.0.1", port=server.server_port)
    thread = threading.Thread(target=server.handle_request)
    with ReadyProbe(
        address,
        sha256=SHA,
        key="k",
        on_ready=lambda: report("ready"),
        on_failure=lambda error: report(str(error)),
    ) as probe:
        thread.start()
        assert done.wait(10)
    thread.join(10)
    assert probe.answered == (reported == ["ready"])
    (only,) = reported
    return only


def test_the_expected_answer_means_ready(
    server: tuple[http.server.HTTPServer, type[Handler]],
) -> None:
    assert outcome(server[0]) == "ready"
    assert server[1].keys == ["Bearer k"]


@pytest.mark.parametrize(
    ("status", "body", "parts"),
    [
        (404, b"{}", ["without prefmix's routes", "404"]),
        (401, b"{}", ["401"]),
        (200, b"<html>", ["other profiles", "None", SHA]),
        (200, b"[1]", ["other profiles"]),
        (200, b'{"sha256": "x"}', ["other profiles", "x", SHA]),
    ],
)
def test_any_other_answer_is_a_failure(status: int, body: bytes, parts: list[str]) -> None:
    with pytest.raises(ProbeError) as caught:
        check_answer(status, body, sha256=SHA)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_failure_is_reported_once(server: tuple[http.server.HTTPServer, type[Handler]]) -> None:
    server[1].status = 404
    assert "without prefmix's routes" in outcome(server[0])


def test_a_server_whose_connections_are_all_taken_is_asked_again(
    server: tuple[http.server.HTTPServer, type[Handler]],
) -> None:
    class Full(server[1]):  # type: ignore[misc,name-defined]
        def do_GET(self) -> None:
            type(self).status = 200 if type(self).keys else 503
            super().do_GET()

    server[0].RequestHandlerClass = Full
    threading.Thread(target=server[0].handle_request).start()
    assert outcome(server[0]) == "ready"
    assert server[1].keys == ["Bearer k"] * 2


def test_an_error_of_what_is_called_does_not_repeat_the_call(
    server: tuple[http.server.HTTPServer, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)

    def fail() -> None:
        raise OSError("full disk")

    threading.Thread(target=server[0].handle_request).start()
    address = Address(host="127.0.0.1", port=server[0].server_port)
    with ReadyProbe(
        address, sha256=SHA, key=None, on_ready=fail, on_failure=lambda error: None
    ) as probe:
        probe._thread.join(20)
        assert not probe._thread.is_alive()
    assert [str(each.exc_value) for each in raised] == ["full disk"]


def test_nobody_listening_is_waited_for() -> None:
    called: list[object] = []
    address = Address(host="127.0.0.1", port=1)
    with ReadyProbe(
        address,
        sha256=SHA,
        key=None,
        on_ready=lambda: called.append("ready"),
        on_failure=called.append,
    ):
        threading.Event().wait(0.3)
    assert called == []


@pytest.mark.parametrize(
    ("address", "url", "reached"),
    [
        (Address(host="127.0.0.1", port=80), "http://127.0.0.1:80", "127.0.0.1"),
        (Address(host="0.0.0.0", port=80), "http://0.0.0.0:80", "127.0.0.1"),
        (Address(host="::", port=80, tls=True), "https://[::]:80", "::1"),
        (Address(host="h", port=80, unix_socket="/run/x"), "unix:/run/x", "h"),
    ],
)
def test_addresses_are_written_as_urls(address: Address, url: str, reached: str) -> None:
    assert (address.url, address.reachable_host) == (url, reached)


def test_this_machine_s_own_url_is_one_that_can_be_connected_to() -> None:
    for host, url in (("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80")):
        assert Address(host=host, port=80).local_url == url
    assert Address(host="h", port=80, tls=True).local_url == "https://h:80"
    assert Address(host="h", port=80, unix_socket="/run/x").local_url == "http://localhost"


def test_unix_sockets_are_asked(
    tmp_path: Path, server: tuple[http.server.HTTPServer, type[Handler]]
) -> None:
    path = str(tmp_path / "socket")
    ready = threading.Event()
    with socketserver.UnixStreamServer(path, server[1]) as listener:
        thread = threading.Thread(target=listener.handle_request)
        thread.start()
        address = Address(host="", port=0, unix_socket=path)
        with ReadyProbe(
            address, sha256=SHA, key=None, on_ready=ready.set, on_failure=lambda error: None
        ):
            assert ready.wait(10)
        thread.join(10)
