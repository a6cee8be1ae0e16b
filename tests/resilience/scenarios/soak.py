"""Hours of mixed load with changing weights: memory, files, sockets and threads stay flat.

    python -m resilience.scenarios.soak [--seconds 3600] [--warm-up 300] [--record]

The resident memory of each process of the server is sampled after the warm-up, and its slope over
the requests found by Theil and Sen's median of pairwise slopes. Prints a table, then one line of
JSON; exit code 1 if memory grows by more than `--limit` MiB per 10,000 requests.
"""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from resilience.checks.ledger import Ledger
from resilience.checks.resources import Sample, Sampler, rss_slope
from resilience.harness.demo_server import DemoServer, running
from resilience.harness.report import publish, run_parser, table
from resilience.harness.traffic import Traffic
from resilience.scenarios.mixed_run import check_outcomes, check_rest, resting

LIMIT_MIB_PER_10K = 1.0
"""The largest promised growth of memory per 10,000 requests."""
_CHANGE_EVERY_S = 2.0
_LONGEST_STEP = 500
_MOST_ROWS = 64


def run(
    demo: DemoServer,
    *,
    seconds: float,
    warm_up_s: float,
    num_clients: int = 16,
    seed: int = 0,
    samples_csv: Path | None = None,
    visits_sizes: bool = True,
) -> tuple[str, dict[str, Any]]:
    """Runs the load. Returns: a table, and the figures; `rss_mib_per_10k` is of all processes.

    Args:
      samples_csv: where to write every sample; other arguments are those of the command.
      visits_sizes: whether to begin with `visit_all_sizes`.

    Raises: AssertionError if a request ends wrong, or files, sockets or threads are left over.
    """
    traffic = Traffic(demo, seed=seed, num_clients=num_clients)
    ledger = Ledger(demo, seed=seed)
    if visits_sizes:
        visit_all_sizes(demo, seed=seed)
    until = time.monotonic() + warm_up_s
    with Changing(ledger):
        asyncio.run(traffic.run(goes_on=lambda: time.monotonic() < until))
    demo.settle()
    at_rest = resting(demo)
    num_before = traffic.num_sent

    until = time.monotonic() + seconds
    sampler = Sampler(
        demo.server.family(),
        every_s=max(0.5, seconds / 1000),
        num_requests=lambda: traffic.num_sent,
    )
    with sampler, Changing(ledger):
        asyncio.run(traffic.run(goes_on=lambda: time.monotonic() < until))
    demo.settle()
    check_outcomes(traffic, ledger)
    left = check_rest(demo, at_rest)
    demo.assert_sound()

    slopes = {name: rss_slope(samples) for name, samples in sampler.samples.items()}
    rows = [("process", "MiB first", "MiB last", "MiB per 10,000", "files", "sockets", "threads")]
    figures: dict[str, Any] = {
        "requests": traffic.num_sent - num_before,
        "seconds": seconds,
        "versions": len(ledger.versions),
        "rss_mib_per_10k": round(sum(slopes.values()), 3),
        **left,
    }
    if samples_csv is not None:
        write_samples(samples_csv, sampler.samples)
    lines: list[tuple[object, ...]] = [*rows]
    for name, samples in sampler.samples.items():
        lines.append(_row(name, samples, slopes[name]))
        figures[f"{name.split()[0]} MiB per 10k"] = round(slopes[name], 3)
    text = table(lines)
    text += f"\n{figures['requests']:,} requests in {seconds:,.0f} s over "
    text += f"{figures['versions']:,} versions; all processes together "
    text += f"{figures['rss_mib_per_10k']:+.2f} MiB per 10,000 requests"
    return text, figures


class Changing:
    """Changes the weights every few seconds in a thread of its own, while it is entered."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_over = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _follow(self) -> None:
        try:
            while not self._is_over.wait(_CHANGE_EVERY_S):
                self._ledger.change()
        except Exception as error:
            self._failure = error


def visit_all_sizes(demo: DemoServer, *, seed: int) -> None:
    """Makes the engine compute steps of every number of tokens and rows, one request at a time.

    The engine's matrix library caches data for each size, up to a limit. A load meets the rare
    sizes only in the course of hours, and their memory would look like a leak.
    """
    rng = random.Random(seed)
    for num_tokens in range(1, _LONGEST_STEP):
        prompt = [rng.randrange(10, 200) for _ in range(num_tokens)]
        answer = demo.complete(prompt=prompt, max_tokens=1)
        assert answer.status == 200, answer
    for num_rows in range(1, _MOST_ROWS):
        answer = demo.complete(n=num_rows, max_tokens=2)
        assert answer.status == 200, answer


def write_samples(path: Path, samples: dict[str, list[Sample]]) -> None:
    """Writes every sample of every process as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("process", *(field.name for field in dataclasses.fields(Sample))))
        for name, rows in samples.items():
            writer.writerows((name, *dataclasses.astuple(row)) for row in rows)


def _row(name: str, samples: list[Sample], slope: float) -> tuple[object, ...]:
    first, last = samples[0], samples[-1]
    moved = (
        f"{getattr(first, field)} to {getattr(last, field)}"
        for field in ("num_files", "num_sockets", "num_threads")
    )
    return name, first.rss_mib, last.rss_mib, slope, *moved


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = run_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--warm-up", type=float, default=300, help="seconds; default 300")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--limit", type=float, default=LIMIT_MIB_PER_10K)
    parser.add_argument("--samples", type=Path, metavar="CSV", help="write every sample there")
    args = parser.parse_args()
    with running() as demo:
        text, figures = run(
            demo,
            seconds=args.seconds,
            warm_up_s=args.warm_up,
            num_clients=args.clients,
            seed=args.seed,
            samples_csv=args.samples,
        )
    publish("soak", text, figures, record=args.record)
    return int(figures["rss_mib_per_10k"] > args.limit)


if __name__ == "__main__":
    sys.exit(main())
