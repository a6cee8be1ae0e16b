"""Many connections at once, and clients that leave, stop or go back in time."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator, Mapping

import psutil

from prefmix.weights.store.store import WeightsStore
from resilience.harness.asked_server import KEY
from resilience.harness.demo_server import DemoServer
from resilience.inputs.hostile_requests import request

_MAX_MIB_A_CONNECTION = 1.0
_SHARE_OF_FILES = 0.8
_STREAM = {"prompt": "Tell me about the Park Hotel.", "stream": True, "ignore_eos": True}


def idle_connections(demo: DemoServer) -> None:
    """As many connections as this process may open, at most 10,000, half with part of a head."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    count = min(10_000, int(_SHARE_OF_FILES * files) - 256)
    process = psutil.Process(demo.server.process.pid)
    before = process.memory_info().rss
    with _connections(demo, count) as connections:
        for connection in connections[::2]:
            with contextlib.suppress(OSError):
                connection.sendall(
                    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: " + b"a" * 4000
                )
        assert demo.ask("GET", "/health").status == 200, "idle connections keep others out"
        assert demo.complete().status == 200, "idle connections keep requests out"
        grown_mib = (process.memory_info().rss - before) / 2**20
        assert grown_mib < _MAX_MIB_A_CONNECTION * count, f"{count} take {grown_mib:.0f} MiB"


def cancel_storm(demo: DemoServer) -> None:
    """500 requests whose client is gone at once."""
    data = _generate(max_tokens=200)
    for _ in range(500):
        with socket.create_connection(("127.0.0.1", demo.server.port)) as connection:
            connection.sendall(data)
    demo.settle()


def silent_readers(demo: DemoServer) -> None:
    """Clients that ask for streams and read nothing; others are answered meanwhile."""
    with _connections(demo, 24) as connections:
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(_generate(max_tokens=400))
        time.sleep(1)
        assert demo.ask("GET", "/health").status == 200
        assert demo.complete().status in (200, 503)
    demo.settle()


def hung_engine(demo: DemoServer) -> None:
    """The engine hangs: requests end at their time limit, probes answer, and all goes on."""
    engines = [each for each in demo.server.family() if "EngineCore" in each.name()]
    engines += [each for each in demo.server.family() if "Worker" in each.name()]
    for engine in engines:
        engine.suspend()
    try:
        answer = demo.ask(
            "POST",
            "/v1/completions",
            {"prompt": "Hi.", "max_tokens": 1},
            **{"x-prefmix-timeout": "2"},
        )
        assert answer.status == 504, answer
        assert demo.ask("GET", "/health").status == 200
    finally:
        for engine in engines:
            engine.resume()
    demo.settle()
    assert demo.complete().status == 200


def restored_store(demo: DemoServer) -> None:
    """An earlier version that is copied over the store becomes a new one."""
    for number in (1, 2, 3):
        answer = demo.admin(
            "PUT", "/profiles/restored", {"weights": {"polite": number, "concise": 1}}
        )
        assert answer.status == 200, answer
    newest = int(answer.body["version"])
    store = WeightsStore(demo.store)
    earlier = [version for version in store.versions() if version < newest][-1]
    history = demo.store.with_name(demo.store.name + ".history")
    demo.store.write_bytes((history / f"{earlier}.json").read_bytes())
    answer = demo.admin("POST", "/weights/reload")
    assert answer.status == 200, answer
    assert answer.body["version"] > newest, f"{answer.body['version']} after {newest}"
    stale = demo.admin(
        "PUT", "/profiles/restored", {"weights": {"polite": 1}}, **{"If-Match": f'"{newest}"'}
    )
    assert stale.status == 412, stale
    assert demo.admin("DELETE", "/profiles/restored").status == 200


SEQUENCES: Mapping[str, Callable[[DemoServer], None]] = {
    function.__name__.replace("_", " "): function
    for function in (idle_connections, cancel_storm, silent_readers, hung_engine, restored_store)
}


def _generate(*, max_tokens: int) -> bytes:
    body = json.dumps({**_STREAM, "max_tokens": max_tokens}).encode()
    return request("POST", "/v1/completions", body=body, token=KEY)


@contextlib.contextmanager
def _connections(demo: DemoServer, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", demo.server.port), timeout=30)
            made.append(stack.enter_context(connection))
        yield made
