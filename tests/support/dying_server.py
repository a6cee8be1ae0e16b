"""The death of a server, as its clients and its supervisor see it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import httpx
import psutil

from support.server_process import ServerProcess

END_S = 60.0
"""The server ends within so many seconds after the death of any of its processes."""

MANY_TOKENS = 230
"""The length of a text that is still under way when a process dies."""


def dies(
    server: ServerProcess,
    kill: Callable[[], object],
    *,
    key: str | None = None,
    has_log: bool = True,
) -> None:
    """Kills with requests under way: each gets an answer, and the server ends with an error.

    Args:
      kill: kills one process of the server.
      key: the API key that the server asks for.
      has_log: the server's log can be read.
    """
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    outcomes: list[str] = []

    def request(stream: bool) -> None:
        body = {
            "prompt": "hello",
            "max_tokens": MANY_TOKENS,
            "ignore_eos": True,
            "stream": stream,
        }
        try:
            while True:
                response = httpx.post(
                    f"{server.url}/v1/completions", json=body, headers=headers, timeout=60
                )
                assert response.status_code != 401
                if response.status_code != 200 or '"error"' in response.text:
                    outcomes.append(f"{response.status_code}")
                    return
        except httpx.HTTPError as error:
            outcomes.append(type(error).__name__)

    clients = [threading.Thread(target=request, args=(stream,)) for stream in (False, True) * 2]
    for client in clients:
        client.start()
    time.sleep(1)
    server.family()
    began = time.monotonic()
    kill()
    ended = server.process.wait(timeout=120)
    seconds = time.monotonic() - began
    for client in clients:
        client.join(timeout=END_S)
    assert len(outcomes) == len(clients), "a client still waits for its answer"
    assert ended == 1
    assert server.survivors() == []
    if has_log:
        last = server.stderr.strip().splitlines()[-1]
        assert last.startswith("prefmix: error: the server failed: "), server.stderr
    print(f"ended {seconds:.1f} s after the kill; clients got {sorted(outcomes)}")
    assert seconds < END_S


def named(server: ServerProcess, name: str) -> list[psutil.Process]:
    """Processes of the server's family by part of their name."""
    return [each for each in server.family() if each.is_running() and name in each.name()]
