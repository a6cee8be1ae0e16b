"""`prefmix serve` on the demo policies with a store, an admin token and a request log in JSON."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from resilience.harness.asked_server import KEY, TOKEN, Answer, AskedServer
from support.server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "policies" / "demo" / "serve.yaml"
MEMBERS = ("positive", "concise", "polite", "reference")
MAX_MODEL_LEN = 512
SMALL_CACHE_BYTES = 48 * 2**20
"""A KV cache that fills soon, so that its filling does not look like a leak."""

_UNDER_WAY = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "prefmix_requests_in_flight",
)

Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]


class DemoServer(AskedServer):
    """A running server; `start` comes first, `stop` or `kill` last, and it can be started again."""

    def __init__(self, folder: Path, *words: str, **environ: str) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._words = words
        self._environ = environ
        self._starts = 0
        self.store = folder / "weights.json"
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

    def kill(self) -> None:
        """Ends all its processes at once."""
        self.server.kill()

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

    def settle(self, timeout_s: float = 120) -> float:
        """Waits until engine and server have nothing to do; returns how long, in seconds."""
        began = time.monotonic()
        while True:
            found = self.metrics()
            if total(found, *_UNDER_WAY) == 0:
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
