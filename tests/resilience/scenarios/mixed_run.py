"""Requests of every shape, with clients that hang up, while the weights change; then the accounts.

    python -m resilience.scenarios.mixed_run [--requests 10000] [--changes 500] [--api-servers 2]

Every request ends in one way, every answer reports weights that were in force when it was admitted,
and what /metrics counted is what the clients saw. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter
from typing import Any

from resilience.checks.accounts import accounts_of
from resilience.checks.ledger import Ledger
from resilience.checks.resources import Sample, Sampler, rss_slope, sample
from resilience.harness.demo_server import DemoServer, Metrics, running
from resilience.harness.report import publish, run_parser, table
from resilience.harness.traffic import Traffic

_REST_S = 30.0
_AGREE_S = 10.0


def run(
    demo: DemoServer, *, num_requests: int, num_changes: int, num_clients: int = 16, seed: int = 0
) -> tuple[str, dict[str, Any]]:
    """Runs the load and checks everything. Returns: a table, and the figures by name.

    Raises: AssertionError naming the first requests that ended wrong.
    """
    warm_up = Traffic(demo, seed=seed + 1, num_clients=num_clients)
    until = time.monotonic() + 10
    asyncio.run(warm_up.run(goes_on=lambda: time.monotonic() < until))
    demo.settle()
    at_rest = resting(demo)
    before = demo.metrics()
    log_begins = len(demo.log())

    traffic = Traffic(demo, seed=seed, num_clients=num_clients)
    ledger = Ledger(demo, seed=seed)
    began = time.monotonic()
    with Sampler(
        demo.server.family(), every_s=0.5, num_requests=lambda: traffic.num_sent
    ) as sampler:
        changing = Changing(ledger, traffic, num_requests=num_requests, num_changes=num_changes)
        with changing:
            asyncio.run(
                traffic.run(goes_on=lambda: traffic.num_sent < num_requests or changing.is_alive)
            )
    seconds = time.monotonic() - began
    if changing.failure is not None:
        raise changing.failure
    settled_s = demo.settle()

    check_outcomes(traffic, ledger)
    accounts = settled_accounts(demo, traffic, ledger, before=before, log_begins=log_begins)
    left = check_rest(demo, at_rest)
    endings = Counter(_ending(outcome) for outcome in traffic.outcomes)
    figures = {
        "requests": traffic.num_sent,
        "seconds": round(seconds, 1),
        **{f"ended_{name}": count for name, count in sorted(endings.items())},
        "versions": len(ledger.versions),
        "versions_answered": len({each.version for each in traffic.outcomes} - {None}),
        **{f"changes_{name}": count for name, count in sorted(ledger.results.items())},
        "file_swaps": ledger.num_swaps,
        **accounts,
        "settled_s": round(settled_s, 2),
        **left,
        "rss_mib_per_10k": round(sum(map(rss_slope, sampler.samples.values())), 2),
    }
    return table([("mixed run", ""), *figures.items()]), figures


class Changing:
    """Changes the weights in a thread of its own, evenly over the requests."""

    def __init__(
        self, ledger: Ledger, traffic: Traffic, *, num_requests: int, num_changes: int
    ) -> None:
        self.failure: Exception | None = None
        self._ledger = ledger
        self._traffic = traffic
        self._requests_a_change = num_requests / num_changes
        self._num_changes = num_changes
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """True while changes are still to come."""
        return self._thread.is_alive()

    def _follow(self) -> None:
        try:
            for number in range(self._num_changes):
                while self._traffic.num_sent < number * self._requests_a_change:
                    time.sleep(0.005)
                self._ledger.change()
        except Exception as error:
            self.failure = error


def check_outcomes(traffic: Traffic, ledger: Ledger) -> None:
    """Checks that every request ended as it may, with weights that were in force."""
    wrong = [outcome for outcome in traffic.outcomes if not outcome.is_good]
    assert not wrong, f"{len(wrong)} requests ended wrong, such as {wrong[:3]}"
    for outcome in traffic.outcomes:
        if outcome.version is None or outcome.head_at is None:
            continue
        reason = ledger.explain(outcome.version, sent_at=outcome.sent_at, head_at=outcome.head_at)
        assert not reason, f"{reason}: {outcome}"
        if outcome.profile != "custom":
            expected = ledger.weights_header(outcome.version, outcome.profile)
            assert outcome.weights == expected, f"of another version: {outcome}"


def settled_accounts(
    demo: DemoServer, traffic: Traffic, ledger: Ledger, *, before: Metrics, log_begins: int
) -> dict[str, Any]:
    """The accounts as soon as they agree: log and counters may reach their readers seconds later.

    Raises: AssertionError if they do not agree in the end.
    """
    deadline = time.monotonic() + _AGREE_S
    while True:
        after, log = demo.metrics(), demo.log()[log_begins:]
        try:
            return accounts_of(traffic, ledger, before=before, after=after, log=log)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def resting(demo: DemoServer) -> dict[int, Sample]:
    """The resources of each process between two loads."""
    return {
        process.pid: sample(process, num_requests=0)
        for process in demo.server.family()
        if process.is_running()
    }


def check_rest(demo: DemoServer, before: dict[int, Sample]) -> dict[str, int]:
    """Waits until files, sockets and threads are as few as before. Returns: the excess left."""
    deadline = time.monotonic() + _REST_S
    while True:
        after = resting(demo)
        more = {
            name: sum(getattr(after[pid], name) - getattr(before[pid], name) for pid in before)
            for name in ("num_files", "num_sockets", "num_threads")
        }
        assert set(after) == set(before), "the processes are others now"
        if all(count <= 0 for count in more.values()) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert more["num_sockets"] <= 0, f"sockets stay open: {more}"
    assert more["num_files"] <= 2, f"files stay open: {more}"
    assert more["num_threads"] <= 4, f"threads stay: {more}"
    return {f"more_{name.removeprefix('num_')}": count for name, count in more.items()}


def _ending(outcome: Any) -> str:
    if outcome.ending == "gone":
        return "by_client"
    return "answered" if outcome.status == 200 else "refused"


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = run_parser(__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=500)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--api-servers", type=int, default=1, help="API processes; default 1")
    args = parser.parse_args()
    with running("--", f"--api-server-count={args.api_servers}") as demo:
        text, figures = run(
            demo,
            num_requests=args.requests,
            num_changes=args.changes,
            num_clients=args.clients,
            seed=args.seed,
        )
    publish("mixed_run", text, figures, record=args.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
