"""How long a change of weights takes until it is in force, idle and under load.

    .venv/bin/python tests/bench/bench_reload.py [--clients 8] [--changes 200] [--api-processes 1]

Starts `prefmix serve` on the demo policies and changes a profile again and again over HTTP. A
change is in force in every API process when its PUT is answered (each is checked by the request
that follows), so the PUT's time is the time to visible. Beside it, in the same run: a GET of
/v1/mixture, which does nothing but pass through the same event loop, and the store's own write
without any server. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "engine"))

from server_process import ServerProcess  # noqa: E402

from weights.changes import with_profile  # noqa: E402
from weights.profiles import build_profile_set  # noqa: E402
from weights.store import WeightsStore  # noqa: E402
from weights.store_format import spec_of_members  # noqa: E402

TOKEN = "bench-token"
MEMBERS = ("positive", "concise", "polite", "reference")


def main() -> int:
    """Runs the bench; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--clients", type=int, default=8, help="closed-loop clients under load")
    parser.add_argument("--changes", type=int, default=200, help="changes, idle and under load")
    parser.add_argument("--api-processes", type=int, default=1)
    args = parser.parse_args()
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows["store write, no server"] = store_writes(Path(folder) / "alone.json", args.changes)
        words = [str(ROOT / "policies" / "demo" / "serve.yaml")]
        words += ["--weights-store", f"{folder}/weights.json"]
        words += ["--", f"--api-server-count={args.api_processes}"]
        server = ServerProcess(Path(folder), words, PREFMIX_ADMIN_TOKEN=TOKEN)
        try:
            server.wait_ready()
            rows["GET /v1/mixture, idle"] = reads(server.url, args.changes)
            rows["PUT, idle"] = puts(server.url, args.changes)
            stop = load(server.url, args.clients)
            rows["GET /v1/mixture, load"] = reads(server.url, args.changes)
            rows["PUT, load"] = puts(server.url, args.changes)
            num_answers = stop()
        finally:
            server.kill()
    report = {name: summary(times_s) for name, times_s in rows.items()}
    print(f"{'ms':<26}{'median':>9}{'p99':>9}{'max':>9}")
    for name, row in report.items():
        print(f"{name:<26}{row['median_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['max_ms']:>9.2f}")
    settings = {
        "clients": args.clients,
        "changes": args.changes,
        "api_processes": args.api_processes,
        "answers_under_load": num_answers,
        "cores": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }
    print(json.dumps({**settings, **report}))
    return 0


def timed(call: Callable[[int], None], times: int) -> list[float]:
    """Seconds of each of so many calls."""
    found = []
    for number in range(times):
        started = time.perf_counter()
        call(number)
        found.append(time.perf_counter() - started)
    return found


def store_writes(path: Path, times: int) -> list[float]:
    """Changes of a file, durable, with history."""
    store = WeightsStore(path)
    store.create(build_profile_set({}, spec_of_members(MEMBERS)))

    def write(number: int) -> None:
        preferences = {"positive": number + 1, "polite": 1}
        store.change(lambda current: with_profile(current, "bench", preferences))

    return timed(write, times)


def reads(url: str, times: int) -> list[float]:
    """Requests that change nothing and run no policy."""

    def read(number: int) -> None:
        httpx.get(f"{url}/v1/mixture", timeout=60).raise_for_status()

    return timed(read, times)


def puts(url: str, times: int) -> list[float]:
    """Changes over HTTP; each is checked by the request that follows, outside the time."""
    found = []
    stamp = time.time()
    for number in range(times):
        body = {"weights": {"positive": number + stamp, "polite": 1}}
        started = time.perf_counter()
        answer = httpx.put(
            f"{url}/admin/profiles/bench",
            json=body,
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=60,
        )
        found.append(time.perf_counter() - started)
        seen = httpx.get(f"{url}/v1/mixture", timeout=60).json()["version"]
        if not answer.json()["changed"] or seen != answer.json()["version"]:
            raise RuntimeError(f"the change is not visible: {answer.text}, seen version {seen}")
    return found


def load(url: str, num_clients: int) -> Callable[[], int]:
    """Starts clients that ask without a pause; the function ends them and counts the answers."""
    is_over = threading.Event()
    answers = [0] * num_clients
    failures: list[str] = []

    def client(index: int) -> None:
        body = {"prompt": "Review the Park Hotel.", "max_tokens": 16}
        with httpx.Client(timeout=60) as connection:
            while not is_over.is_set():
                response = connection.post(f"{url}/v1/completions", json=body)
                if response.status_code != 200:
                    failures.append(response.text)
                    return
                answers[index] += 1

    threads = [threading.Thread(target=client, args=(index,)) for index in range(num_clients)]
    for thread in threads:
        thread.start()
    time.sleep(1)

    def stop() -> int:
        is_over.set()
        for thread in threads:
            thread.join()
        if failures:
            raise RuntimeError(f"a request failed: {failures[0]}")
        return sum(answers)

    return stop


def summary(times_s: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum, in milliseconds."""
    return {
        "median_ms": round(statistics.median(times_s) * 1e3, 3),
        "p99_ms": round(statistics.quantiles(times_s, n=100)[98] * 1e3, 3),
        "max_ms": round(max(times_s) * 1e3, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
