"""Checks the dashboards and rules against a real server under load and a real Prometheus.

    apt-get install prometheus
    .venv/bin/python -m deploy.check_live        # about a minute and a half

The check serves the demo policies, lets Prometheus scrape them, sends every kind of request,
changes the weights, causes a refused reload and repairs it. Then every expression of every panel,
variable, annotation, recording rule and alert must have an answer, and the alert for the refused
reload must have fired and ended. Otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from deploy.queries import RULES, Query, dashboard_queries, rule_queries

ROOT = Path(__file__).resolve().parents[1]

EXCUSED = {
    "prefmix: mixture, Rewards": "needs rewards that someone has pushed",
    "alert PrefmixAbsent": "has an answer only without any server",
}
"""Expressions that cannot have an answer here, and why."""

REQUESTS: tuple[dict[str, Any], ...] = (
    {},
    {"preference_profile": "short-and-kind"},
    {"preference_weights": {"positive": 1, "polite": 2}},
    {"model": "demo@glowing-letter", "stream": True},
    {"preference_candidates": 4, "temperature": 1},
    {"preference_profile": "no-such-profile"},
    {"preference_weights": {"no-such-policy": 1}},
)
"""Fields of the requests, sent in turn with a prompt; the last two are refused."""

CONFIGURATION = """\
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}/*.yaml"]
scrape_configs:
  - job_name: prefmix
    static_configs: [{{targets: ["{target}"]}}]
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.check_live", description=__doc__)
    parser.add_argument("--load-s", type=float, default=30, help="seconds of load; default 30")
    args = parser.parse_args(argv)
    if shutil.which("prometheus") is None:
        print("prometheus is not installed: apt-get install prometheus", file=sys.stderr)
        return 1
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="check-live-")))
        token = secrets.token_hex(16)
        server = stack.enter_context(_server(folder, token))
        prometheus = stack.enter_context(_prometheus(folder, server))
        begun = time.time()
        with _load(server):
            time.sleep(args.load_s / 2)
            _change_weights(server, token)
            time.sleep(args.load_s / 2)
        fired = _refused_reload_fires(server, prometheus, folder / "weights.json", token)
        print(f"a refused reload: the alert {'fired and ended' if fired else 'DID NOT FIRE'}")
        missing = _report(prometheus, begun)
    return 0 if fired and not missing else 1


def _client(port: int) -> httpx.Client:
    """A client of this machine, whatever proxies the environment names."""
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)


@contextlib.contextmanager
def _server(folder: Path, token: str) -> Iterator[httpx.Client]:
    port = _free_port()
    command = [
        str(Path(sys.executable).with_name("prefmix")),
        *("serve", str(ROOT / "policies/demo/serve.yaml"), "--port", str(port)),
        *("--weights-store", str(folder / "weights.json")),
    ]
    environ = {**os.environ, "PREFMIX_ADMIN_TOKEN": token}
    with (
        _process(command, folder / "server.log", environ),
        _client(port) as client,
    ):
        _wait_for("the server", lambda: client.get("/health").is_success, limit_s=180)
        yield client


@contextlib.contextmanager
def _prometheus(folder: Path, server: httpx.Client) -> Iterator[httpx.Client]:
    port = _free_port()
    target = f"{server.base_url.host}:{server.base_url.port}"
    config = folder / "prometheus.yml"
    config.write_text(CONFIGURATION.format(rules=RULES, target=target), encoding="utf-8")
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (
        _process(command, folder / "prometheus.log", dict(os.environ)),
        _client(port) as client,
    ):
        _wait_for("Prometheus", lambda: client.get("/-/ready").is_success, limit_s=30)
        yield client


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path, environ: dict[str, str]) -> Iterator[None]:
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environ)
        try:
            yield
        except BaseException:
            print(f"{command[0]} said:\n{log.read_text()[-2000:]}", file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def _load(server: httpx.Client) -> Iterator[None]:
    """Sends requests of every kind from four clients, as long as the block runs."""
    is_over = threading.Event()

    def send() -> None:
        while not is_over.is_set():
            for fields in REQUESTS:
                body = {"model": "demo", "prompt": "Review the Park Hotel.", "max_tokens": 40}
                server.post("/v1/completions", json=body | fields)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _change_weights(server: httpx.Client, token: str) -> None:
    answer = server.put(
        "/admin/profiles/check-live",
        json={"weights": {"concise": 1, "polite": 1}},
        headers={"authorization": f"Bearer {token}"},
    )
    answer.raise_for_status()


def _refused_reload_fires(
    server: httpx.Client, prometheus: httpx.Client, store: Path, token: str
) -> bool:
    """Breaks the store's file, repairs it at the alert; True if the alert came and went."""

    def is_firing() -> bool:
        query = 'ALERTS{alertname="PrefmixReloadRefused", alertstate="firing"}'
        return bool(_answer(prometheus, "/api/v1/query", {"query": query}))

    aside = store.with_name("broken.json")
    aside.write_text("{", encoding="utf-8")
    aside.replace(store)
    with contextlib.suppress(TimeoutError):
        _wait_for("the alert", is_firing, limit_s=20)
        headers = {"authorization": f"Bearer {token}"}
        server.post("/admin/weights/rollback", headers=headers).raise_for_status()
        _wait_for("the end of the alert", lambda: not is_firing(), limit_s=20)
        return True
    return False


def _report(prometheus: httpx.Client, begun: float) -> list[Query]:
    """Queries every expression, prints those without an answer, returns those without an excuse."""
    queries = [*dashboard_queries(rate_interval="10s"), *rule_queries()]
    missing, excused = [], 0
    for query in queries:
        span = {"start": str(begun), "end": str(time.time()), "step": "1"}
        series = _answer(prometheus, "/api/v1/query_range", {"query": query.expr} | span)
        values = [float(value) for one in series for _, value in one["values"]]
        if not all(math.isnan(value) for value in values):
            continue
        reason = EXCUSED.get(query.where)
        what = f"excused, {reason}" if reason else "NO ANSWER" if not values else "ONLY NaN"
        print(f"{what}: {query.where}: {query.expr}")
        excused += reason is not None
        if not reason:
            missing.append(query)
    answered = len(queries) - len(missing) - excused
    print(f"of {len(queries)} expressions {answered} have an answer and {excused} an excuse")
    return missing


def _answer(prometheus: httpx.Client, path: str, parameters: dict[str, str]) -> list[Any]:
    answer = prometheus.get(path, params=parameters).json()
    if answer["status"] != "success":
        raise ValueError(f"Prometheus refuses {parameters['query']}: {answer['error']}")
    result: list[Any] = answer["data"]["result"]
    return result


def _wait_for(what: str, is_there: Callable[[], bool], *, limit_s: float) -> None:
    """Waits until `is_there` is true. Raises: TimeoutError."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if is_there():
                return
        time.sleep(0.5)
    raise TimeoutError(f"{what} did not come within {limit_s:g} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
