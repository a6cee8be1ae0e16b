"""`prefmix serve` on the demo policies with a store, an admin token and a request log in JSON."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from support.server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "policies" / "demo" / "serve.yaml"
MEMBERS = ("positive", "concise", "polite", "reference")
TOKEN = "admin-token-of-the-resilience-suite"
KEY = "inference-key-of-the-resilience-suite"
MAX_MODEL_LEN = 512
SMALL_CACHE_BYTES = 48 * 2**20
"""A KV cache that fills soon, so that its filling does not look like a leak."""

Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: Any
    """Parsed JSON, or the text where it is none."""


class DemoServer:
    """A running server; `start` comes first, `stop` or `kill` last, and it can be started again."""

    def __init__(self, folder: Path, *words: str, **environ: str) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._words = words
        self._environ = environ
        self._starts = 0
        self.store = folder / "weights.json"
        self.server: ServerProcess
        self.ready_s = 0.0

    def start(self, timeout_s: float = 900) -> DemoServer:
        """Starts a server on the store and waits until it is ready; `ready_s` says how long."""
        self._starts += 1
        folder = self._folder / f"start-{self._starts}"
        folder.mkdir()
        words = list(self._words)
        at = words.index("--") if "--" in words else len(words)
        engine = ["--", f"--kv-cache-memory-bytes={SMALL_CACHE_BYTES}", *words[at + 1 :]]
        flags = [str(CONFIG), "--weights-store", str(self.store), "--request-log", "json"]
        environ = {"PREFMIX_ADMIN_TOKEN": TOKEN, "VLLM_API_KEY": KEY, **self._environ}
        began = time.monotonic()
        self.server = ServerProcess(folder, [*flags, *words[:at], *engine], **environ)
        self.server.wait_ready(timeout_s)
        self.ready_s = time.monotonic() - began
        return self

    def stop(self) -> int:
        """Ends the server by one SIGTERM; returns the exit code."""
        return self.server.end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends all its processes at once."""
        self.server.kill()

    @property
    def url(self) -> str:
        """The server's address."""
        return self.server.url

    def ask(
        self, method: str, path: str, body: Any = None, *, token: str = KEY, **headers: str
    ) -> Answer:
        """One request on a connection of its own. Raises: OSError, http.client.HTTPException."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {token}", **headers}
            content = None
            if body is not None:
                content = json.dumps(body)
                headers["Content-Type"] = "application/json"
            connection.request(method, path, body=content, headers=headers)
            response = connection.getresponse()
            text = response.read().decode()
            lower = {name.lower(): value for name, value in response.getheaders()}
        is_json = lower.get("content-type", "").startswith("application/json")
        return Answer(response.status, lower, json.loads(text) if is_json else text)

    def admin(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request to an admin route."""
        return self.ask(method, f"/admin{path}", body, token=TOKEN, **headers)

    def complete(self, **body: Any) -> Answer:
        """One small completion."""
        return self.ask("POST", "/v1/completions", {"prompt": "Hello.", "max_tokens": 4, **body})

    def metrics(self) -> Metrics:
        """All samples of /metrics."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.ask("GET", "/metrics").body)
            for sample in family.samples
        }

    def log(self) -> list[dict[str, Any]]:
        """The lines of the request log."""
        lines = (line for line in self.server.stderr.splitlines() if line.startswith("{"))
        return [entry for entry in map(json.loads, lines) if entry["logger"] == "prefmix.requests"]

    def settle(self, timeout_s: float = 30) -> float:
        """Waits until the engine has nothing to do; returns how long that took, in seconds."""
        began = time.monotonic()
        while True:
            found = self.metrics()
            if total(found, "vllm:num_requests_running", "vllm:num_requests_waiting") == 0:
                return time.monotonic() - began
            assert time.monotonic() - began < timeout_s, "requests are still running or waiting"
            time.sleep(0.1)

    def assert_sound(self) -> None:
        """Checks that the server lives, answers a request, and has reported no exception."""
        assert self.server.process.poll() is None, self.server.stderr[-3000:]
        answer = self.complete()
        assert answer.status == 200, answer
        assert "Traceback" not in self.server.stderr, self.server.stderr[-6000:]
        assert "Traceback" not in self.server.stdout


def total(metrics: Metrics, *names: str) -> float:
    """The sum of all samples of these names."""
    return sum(value for (name, _), value in metrics.items() if name in names)


def by_label(metrics: Metrics, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The samples of one name by the values of some labels."""
    found: dict[tuple[str, ...], float] = {}
    for (sample, pairs), value in metrics.items():
        if sample == name:
            values = dict(pairs)
            key = tuple(values[label] for label in labels)
            found[key] = found.get(key, 0.0) + value
    return found


@contextlib.contextmanager
def running(*words: str, **environ: str) -> Iterator[DemoServer]:
    """A server in a folder of its own, for a command; it is always ended."""
    # Ended from outside, the server has to end as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="prefmix-resilience-") as folder:
        demo = DemoServer(Path(folder), *words, **environ)
        try:
            yield demo.start()
        finally:
            demo.kill()
