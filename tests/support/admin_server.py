"""A server of the demo policies whose weights change, with methods for its requests."""

from __future__ import annotations

import re
import signal
import ssl
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from support.preloaded_server import Preloaded
from support.server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "policies" / "demo" / "serve.yaml"
TOKEN = "admin-token-of-the-test"
KEY = "inference-key-of-the-test"
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""A context that plain HTTP never uses; without it every request would load all certificates."""
NUM_CLIENTS = 8


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


def wait(is_true: Callable[[], object], timeout: float = 60) -> None:
    """Waits until something is true."""
    deadline = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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


def num_answered(live: Live) -> float:
    """The answers that the server has counted, over all processes."""
    text = httpx.get(f"{live.server.url}/metrics", verify=PLAIN).text
    counts = re.findall(r'^prefmix_requests_total\{outcome="ok".*\} (\S+)$', text, re.M)
    return sum(map(float, counts))
