"""The time until a change of weights is in force, idle and under load.

    .venv/bin/python tests/bench/bench_reload.py [--clients 8] [--changes 200] [--api-processes 1]

Starts `prefmix serve` on the demo policies and changes a profile again and again over HTTP. A
change is in force in every API process when its PUT is answered (each is checked by the request
that follows), so the PUT's time is the time to visible. Beside it, in the same run: a GET of
/v1/mixture, which does nothing but pass through the same event loop, and the store's own write
without any server.

Where client and server share few cores a call also waits for a core, before it is sent and after
it is answered. Linux counts that for each thread, and it stands beside the slowest call of a kind:
`waited_ms` is what this process waited for a core meanwhile, `server_ms` what the main thread of
the (one) API process did. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from prefmix.weights.store.edits import with_profile  # noqa: E402
from prefmix.weights.store.format import spec_of_members  # noqa: E402
from prefmix.weights.store.profiles import build_profile_set  # noqa: E402
from prefmix.weights.store.store import WeightsStore  # noqa: E402
from support.server_process import ServerProcess  # noqa: E402

_WARM_UP_S = 5  # the engine's first batches of a new size take longer
_T = TypeVar("_T")
TOKEN = "bench-token"
MEMBERS = ("positive", "concise", "polite", "reference")


def main() -> int:
    """Runs the bench; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--clients", type=int, default=8, help="closed-loop clients under load")
    parser.add_argument("--changes", type=int, default=200, help="changes, idle and under load")
    parser.add_argument("--api-processes", type=int, default=1)
    args = parser.parse_args()
    # Ended from outside, the server has to end as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    rows: dict[str, list[Call]] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows["store write, no server"] = store_writes(Path(folder) / "alone.json", args.changes)
        words = [str(ROOT / "policies" / "demo" / "serve.yaml")]
        words += ["--weights-store", f"{folder}/weights.json"]
        words += ["--", f"--api-server-count={args.api_processes}"]
        server = ServerProcess(Path(folder), words, PREFMIX_ADMIN_TOKEN=TOKEN)
        try:
            server.wait_ready()
            # With one API process it is the main one; of several only the parent is known.
            watch = Stopwatch(server.process.pid)
            rows["GET /v1/mixture, idle"] = reads(server.url, args.changes, watch)
            rows["PUT, idle"] = puts(server.url, args.changes, watch)
            stop = load(server.url, args.clients)
            rows["GET /v1/mixture, load"] = reads(server.url, args.changes, watch)
            rows["PUT, load"] = puts(server.url, args.changes, watch)
            num_answers = stop()
            server.end(signal.SIGTERM)
        finally:
            server.kill()
    report = {name: summary(calls) for name, calls in rows.items()}
    columns = [("median_ms", 9), ("p99_ms", 9), ("max_ms", 9), ("waited_ms", 12), ("server_ms", 12)]
    print(f"{'':<26}" + "".join(f"{name:>{width}}" for name, width in columns))
    for name, row in report.items():
        print(f"{name:<26}" + "".join(f"{row[column]:>{width}.2f}" for column, width in columns))
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


class Call(NamedTuple):
    """One call: its duration, and the part of it in which ready threads waited for a core."""

    total_s: float
    waited_s: float
    """The wait of this thread for a core."""
    server_waited_s: float
    """The wait of the API process's main thread; of several processes, the known one."""


class Stopwatch:
    """Times calls beside the run-queue wait of this thread and of a server's main thread."""

    def __init__(self, server_pid: int | None = None) -> None:
        self._paths = [Path("/proc/thread-self/schedstat")]
        if server_pid is not None:
            self._paths.append(Path(f"/proc/{server_pid}/task/{server_pid}/schedstat"))

    def time(self, call: Callable[[], _T]) -> tuple[Call, _T]:
        """The times of a call, and its answer."""
        before_s, started = self._waits_s(), time.perf_counter()
        answer = call()
        total_s = time.perf_counter() - started
        waits_s = [b - a for a, b in zip(before_s, self._waits_s(), strict=True)]
        return Call(total_s, waits_s[0], waits_s[-1] if len(waits_s) > 1 else 0.0), answer

    def _waits_s(self) -> list[float]:
        # Time on a core, time ready but without one, in nanoseconds.
        return [int(path.read_text().split()[1]) / 1e9 for path in self._paths]


def store_writes(path: Path, times: int) -> list[Call]:
    """Changes of a file, durable, with history."""
    store = WeightsStore(path)
    store.create(build_profile_set({}, spec_of_members(MEMBERS)))

    def write(number: int) -> None:
        preferences = {"positive": number + 1, "polite": 1}
        store.change(lambda current: with_profile(current, "bench", preferences))

    watch = Stopwatch()
    return [watch.time(lambda number=number: write(number))[0] for number in range(times)]


class Connection:
    """One connection that is kept, so that only the server's time is measured."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The answer's JSON. Raises: RuntimeError unless it is a success."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body)
        self._connection.request(method, path, body=content, headers=headers)
        response = self._connection.getresponse()
        text = response.read()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{method} {path} answered {response.status}: {text[:500]!r}")
        return json.loads(text)


def reads(url: str, times: int, watch: Stopwatch) -> list[Call]:
    """Requests that change nothing and run no policy."""
    connection = Connection(url)
    return [watch.time(lambda: connection.ask("GET", "/v1/mixture"))[0] for _ in range(times)]


def puts(url: str, times: int, watch: Stopwatch) -> list[Call]:
    """Changes over HTTP; each is checked by the request that follows, outside the time."""
    connection = Connection(url)
    found = []
    stamp = time.time()
    for number in range(times):
        body = {"weights": {"positive": number + stamp, "polite": 1}}
        call, answer = watch.time(
            lambda body=body: connection.ask("PUT", "/admin/profiles/bench", body)
        )
        found.append(call)
        seen = connection.ask("GET", "/v1/mixture")["version"]
        if not answer["changed"] or seen != answer["version"]:
            raise RuntimeError(f"the change is not visible: {answer}, seen version {seen}")
    return found


def client(url: str, is_over: Event, answers: Queue[int | str]) -> None:
    """Sends requests without a pause until `is_over` is set, then reports the number of answers."""
    connection = Connection(url)
    body = {"prompt": "Review the Park Hotel.", "max_tokens": 16}
    count = 0
    try:
        while not is_over.is_set():
            connection.ask("POST", "/v1/completions", body)
            count += 1
    except (OSError, RuntimeError) as error:
        answers.put(f"a request failed after {count} answers: {type(error).__name__} {error}")
    else:
        answers.put(count)


def load(url: str, num_clients: int) -> Callable[[], int]:
    """Starts clients in processes of their own; the function ends them and counts the answers."""
    context = multiprocessing.get_context("fork")
    is_over, answers = context.Event(), context.Queue()
    processes = [
        context.Process(target=client, args=(url, is_over, answers), daemon=True)
        for _ in range(num_clients)
    ]
    for process in processes:
        process.start()
    time.sleep(_WARM_UP_S)

    def stop() -> int:
        is_over.set()
        counts = [answers.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(timeout=60)
        if failures := [count for count in counts if isinstance(count, str)]:
            raise RuntimeError(failures[0])
        return sum(counts)

    return stop


def summary(calls: list[Call]) -> dict[str, float]:
    """Median, 99th percentile and maximum; of the slowest call, the waits for a core."""
    times_s = [call.total_s for call in calls]
    slowest = max(calls)
    seconds = {
        "median_ms": statistics.median(times_s),
        "p99_ms": statistics.quantiles(times_s, n=100)[98],
        "max_ms": slowest.total_s,
        "waited_ms": slowest.waited_s,
        "server_ms": slowest.server_waited_s,
    }
    return {name: round(value * 1e3, 3) for name, value in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
