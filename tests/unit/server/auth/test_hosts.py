"""A server answers under its own names only, and its redirects name none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from prefmix.server.admin.listener import serve_admin
from prefmix.server.auth.hosts import AllowedHosts, HostMiddleware

EVERYWHERE = [
    "localhost",
    "localhost:8000",
    "LocalHost.",
    "demo.localhost:1",
    "127.0.0.1:8000",
    "[::1]:8000",
    "10.244.0.17:8000",  # a probe names the pod's address
    "[fd00::7]",
]
WHERE_OTHERS_REACH = [
    "prefmix:8000",  # a container names the service
    "prefmix.mixing.svc",
    "prefmix.mixing.svc.cluster.local:8000",
    "printer.local",
    f"{socket.gethostname()}:8000",
]
NOWHERE = ["rebound.example.org", "localhost.example.org", "127.0.0.1.example.org", "1.2.3.4.5"]


@pytest.mark.parametrize("bound", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_names_of_a_server_that_only_this_machine_reaches(bound: str) -> None:
    allowed = AllowedHosts([], bound=bound)
    assert all(allowed.allows(host) for host in EVERYWHERE)
    assert not any(allowed.allows(host) for host in NOWHERE)
    assert not any(allowed.allows(host) for host in ("prefmix:8000", "printer.local"))


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", "10.1.2.3", "gpu7.example.com"])
def test_names_of_a_server_that_others_reach(bound: str) -> None:
    allowed = AllowedHosts([], bound=bound)
    assert all(allowed.allows(host) for host in EVERYWHERE + WHERE_OTHERS_REACH)
    assert not any(allowed.allows(host) for host in NOWHERE)
    assert allowed.allows("gpu7.example.com") == (bound == "gpu7.example.com")


def test_further_names_are_the_operators_to_give() -> None:
    allowed = AllowedHosts(["LLM.example.org", ".corp.example"], bound="127.0.0.1")
    assert allowed.allows("llm.example.org:443")
    assert allowed.allows("a.b.corp.example")
    assert not any(allowed.allows(host) for host in ("corp.example", "example.org", *NOWHERE))
    assert all(AllowedHosts(["*"], bound="0.0.0.0").allows(host) for host in NOWHERE)


def test_a_unix_socket_has_no_name_unless_it_is_given_one() -> None:
    assert AllowedHosts([], bound=None).allows("rebound.example.org")
    assert not AllowedHosts(["llm.example.org"], bound=None).allows("rebound.example.org")


def ask(
    *hosts: bytes, version: str = "1.1", path: str = "/thing"
) -> tuple[int, dict[bytes, bytes]]:
    """The status and header fields of an answer; the application redirects /thing/ to /thing."""

    def thing(request: Request) -> Response:
        return JSONResponse({})

    allowed = AllowedHosts(["prefmix.example.org"], bound="127.0.0.1")
    app = HostMiddleware(Starlette(routes=[Route("/thing", thing)]), allowed=allowed)
    messages: list[Any] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"a=1",
        "root_path": "",
        "scheme": "http",
        "http_version": version,
        "headers": [(b"host", host) for host in hosts],
        "server": ("127.0.0.1", 8000),
    }
    asyncio.run(app(scope, receive, send))
    return messages[0]["status"], dict(messages[0]["headers"])


@pytest.mark.parametrize(
    ("hosts", "version", "status"),
    [
        ((b"localhost:8000",), "1.1", 200),
        ((b"prefmix.example.org",), "1.1", 200),
        ((b"rebound.example.org",), "1.1", 421),
        ((), "1.1", 400),
        ((b"localhost", b"localhost"), "1.1", 400),
        ((b"localhost", b"rebound.example.org"), "1.1", 400),
        ((b"",), "1.1", 400),
        ((b"localhost/",), "1.1", 400),
        ((b"a@localhost",), "1.1", 400),
        ((b"localhost:80:80",), "1.1", 400),
        ((b"locah\xf6st",), "1.1", 400),
        ((), "1.0", 200),
        ((b"rebound.example.org",), "1.0", 421),
    ],
)
def test_a_request_names_one_host_that_is_the_servers(
    hosts: tuple[bytes, ...], version: str, status: int
) -> None:
    assert ask(*hosts, version=version)[0] == status


def test_a_redirect_does_not_repeat_what_the_client_called_the_server() -> None:
    status, fields = ask(b"prefmix.example.org", path="/thing/")
    assert (status, fields[b"location"]) == (307, b"/thing?a=1")


def test_the_admin_port_checks_as_well() -> None:
    answers: list[bytes] = []

    async def run() -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        app: Any = Starlette(routes=[Route("/thing", lambda request: JSONResponse({}))])
        task = asyncio.create_task(serve_admin(app, listener, AllowedHosts([], bound="127.0.0.1")))
        for host in (b"localhost", b"rebound.example.org"):
            for _ in range(200):
                with contextlib.suppress(ConnectionError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                await asyncio.sleep(0.02)
            writer.write(b"GET /thing HTTP/1.1\r\nhost: " + host + b"\r\n\r\n")
            answers.append((await reader.readline())[:12])
            writer.close()
        # Its limits on heads hold here, too.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /thing HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 9000 + b"\r\n\r\n")
        answers.append((await reader.readline())[:12])
        writer.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert answers == [b"HTTP/1.1 200", b"HTTP/1.1 421", b"HTTP/1.1 431"]


def test_nobody_but_a_trusted_proxy_says_where_a_request_comes_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefmix.server.launch.environment import set_trusted_proxies

    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["client"][0], scope["scheme"]))

    def ask_from(address: str, proxies: tuple[str, ...], environ: dict[str, str]) -> Any:
        set_trusted_proxies(proxies, environ)
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", environ["FORWARDED_ALLOW_IPS"])
        config = uvicorn.Config(app, log_level="critical")
        config.load()
        forwarded = [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-proto", b"https")]
        scope = {"type": "http", "client": (address, 1), "scheme": "http", "headers": forwarded}
        asyncio.run(config.loaded_app(scope, None, None))  # type: ignore[arg-type]
        return seen[-1]

    for address in ("127.0.0.1", "::1"):
        assert ask_from(address, (), {}) == (address, "http")
    assert ask_from("10.0.0.7", ("10.0.0.0/8",), {}) == ("6.6.6.6", "https")
    assert ask_from("127.0.0.1", ("10.0.0.0/8",), {}) == ("127.0.0.1", "http")
    given = {"FORWARDED_ALLOW_IPS": "10.0.0.7"}
    assert ask_from("10.0.0.7", (), given) == ("6.6.6.6", "https"), "uvicorn's own variable"
