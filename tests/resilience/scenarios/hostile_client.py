"""A client that means harm: no request of it stops, stalls, grows or fools the server.

    python -m resilience.scenarios.hostile_client [--share 1] [--seed 0] [--only NAME] [--record]

It sends every field of every route with extreme values, bodies that cost much, and, without a key,
every way around it, odd heads and framings. After each batch the server must be as before: no 5xx
but 503 and 504, nothing in flight, ready, the right answer. Each request has a budget of memory and
of delay of the event loop. A batch beyond it is sent again, one request at a time. What exceeds the
budget each time is a failure; what does not was the machine's. A slower machine has more time.
`--only` repeats the requests whose name has a text.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prefmix.server.traffic.freed_memory import DELAY_S
from resilience.checks.costs import Budget, Cost, Meter, slowness
from resilience.harness.demo_server import DemoServer, running
from resilience.harness.raw_client import send_all, wrong
from resilience.harness.report import publish, run_parser, table
from resilience.inputs import costly_bodies, extremes, strangers
from resilience.inputs.hostile_requests import Hostile
from resilience.scenarios import hostile_crowds
from resilience.scenarios.mixed_run import check_rest, resting

STRANGER = Budget(mib=1, delay_s=0.05)
"""The budget of a request without a key."""

CLIENT = Budget(mib=64, delay_s=0.25)
"""The budget of a request with a key or token, within the limit on bodies."""

MAX_GROWTH_MIB = 64
"""The most that all requests together may leave in the API process, after a warm-up."""

_BATCH = 16
_TRIES = 3
_EMPTY_WITHIN_S = 30.0
_MAX_SHOWN = 25


class Attacker:
    """Sends batches to one server and keeps account of what they cost."""

    def __init__(self, demo: DemoServer) -> None:
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self.worst: dict[str, dict[str, float]] = {}
        self.num_repeated = 0
        self.slowness = slowness()
        self._demo = demo
        self._meter = Meter(demo)
        self._right = self._answer()

    def attack(self, kind: str, requests: Iterable[Hostile]) -> int:
        """Sends requests in batches. Returns: their number. Failures are added to `failures`."""
        count = 0
        for batch in _batched(requests):
            count += len(batch)
            self._meter.begin()
            try:
                answers = asyncio.run(send_all(self._demo.server.port, batch, at_once=4))
                cost = self._meter.end()
            except OSError:  # it is gone
                self._assert_alive(batch, may_live=False)
                raise
            for hostile, answer in zip(batch, answers, strict=True):
                self.statuses[_status(answer)] += 1
                if reason := wrong(hostile, answer):
                    self._fail(hostile, reason)
            if cost.exceeds(self._budget(batch[0])):
                for hostile in batch:
                    cost = self._cost_of(hostile)
                    if cost.exceeds(self._budget(hostile)):
                        self._fail(hostile, str(cost))
                    self._note(kind, cost)
            else:
                self._note(kind, cost)
            self._check(batch)
        return count

    def check(self, name: str, sequence: Callable[[DemoServer], None]) -> None:
        """Runs a sequence of connections; the server must be as before."""
        try:
            sequence(self._demo)
        except AssertionError as error:
            self.failed(f"{name}: {error}")
        self._check([])

    def failed(self, what: str) -> None:
        """Notes a failure, and says it at once: a long run may be cut short."""
        self.failures.append(what)
        print(f"hostile client: {what}", file=sys.stderr, flush=True)

    def _budget(self, hostile: Hostile) -> Budget:
        return (STRANGER if hostile.is_open else CLIENT).at(self.slowness)

    def _cost_of(self, hostile: Hostile) -> Cost:
        """The cost of a request alone: the least of some tries, which other work may disturb."""
        self.num_repeated += 1
        costs: list[Cost] = []
        budget = self._budget(hostile)
        for _ in range(_TRIES):
            self._meter.begin()
            asyncio.run(send_all(self._demo.server.port, [hostile], at_once=1))
            costs.append(self._meter.end())
            if not costs[-1].exceeds(budget):
                break
        return Cost(
            mib=min(cost.mib for cost in costs), delay_s=min(cost.delay_s for cost in costs)
        )

    def _note(self, kind: str, cost: Cost) -> None:
        found = self.worst.setdefault(kind, {"mib": 0.0, "delay_s": 0.0})
        found["mib"] = max(found["mib"], round(cost.mib, 1))
        found["delay_s"] = max(found["delay_s"], cost.delay_s)

    def _check(self, batch: list[Hostile]) -> None:
        """Checks that the server is as before."""
        names = f"after {batch[0].name!r} to {batch[-1].name!r}" if batch else "after a sequence"
        self._assert_alive(batch)
        deadline = time.monotonic() + _EMPTY_WITHIN_S
        while left := self._meter.in_flight():
            if time.monotonic() > deadline:
                self.failed(f"{names}: {left:g} requests stay in flight")
                break
            time.sleep(0.05)
        ready = self._demo.ask("GET", "/ready")
        if ready.status != 200:
            self.failed(f"{names}: not ready: {ready.body}")
        if (answer := self._answer()) != self._right:
            self.failed(f"{names}: a request got {answer!r} instead of {self._right!r}")

    def _assert_alive(self, batch: list[Hostile], *, may_live: bool = True) -> None:
        """Checks that the server has not ended. Raises: AssertionError with its last lines."""
        names = "\n".join(f"{hostile.name}: {hostile.shown}" for hostile in batch)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._demo.server.process.wait(timeout=0.01 if may_live else 10)
            said = self._demo.server.stderr[-3000:]
            raise AssertionError(f"the server has ended with {code} after\n{names}\n{said}")

    def _answer(self) -> str:
        answer = self._demo.complete(
            prompt="Review the Park Hotel.",
            preference_weights={"polite": 1},
            temperature=0,
            max_tokens=4,
        )
        return str(answer.body["choices"][0]["text"] if answer.status == 200 else answer)

    def _fail(self, hostile: Hostile, reason: str) -> None:
        self.failed(f"{hostile.name}: {reason}\n    it was {hostile.shown}")


def run(
    demo: DemoServer, *, share: float, seed: int = 0, only: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Sends everything. Returns: a table, and the figures.

    Args:
      share: of the sweep's requests and of the ways around the key; drawn by the seed.
      only: sends just the requests whose name has this text.
    Raises: AssertionError with the first failures and how to repeat them.
    """
    page = demo.ask("GET", "/openapi.json").body
    attacker, meter = Attacker(demo), Meter(demo)
    kinds: dict[str, Callable[[], Iterable[Hostile]]] = {
        "strangers": strangers.requests,
        "ways around the key": lambda: extremes.drawn(strangers.bypasses(), share, seed),
        "costly bodies": costly_bodies.bodies,
        "fields": lambda: extremes.drawn(extremes.sweep(page), share, seed),
    }
    attacker.attack("warm-up", itertools.islice(extremes.drawn(extremes.sweep(page), 0.02, 1), 64))
    # The first large message makes the sockets' library open a context of its own, for good.
    attacker.attack("warm-up", costly_bodies.bodies())
    attacker.worst.clear()
    series, at_rest, before_mib = meter.num_series(), resting(demo), meter.rss_mib
    began = time.monotonic()
    counts: dict[str, int] = {}
    held_mib: dict[str, float] = {}
    for kind, requests in kinds.items():
        chosen = (each for each in requests() if only is None or only in each.name)
        counts[kind] = attacker.attack(kind, chosen)
        held_mib[kind] = round(meter.rss_mib - before_mib, 1)
    if only is None:
        for name, sequence in hostile_crowds.SEQUENCES.items():
            attacker.check(name, sequence)
            held_mib[name] = round(meter.rss_mib - before_mib, 1)
    seconds = time.monotonic() - began
    if only is None:
        attacker.attack("costly bodies", costly_bodies.bodies())
        time.sleep(2 * DELAY_S)  # freed memory is given back
        held_mib["costly bodies again"] = round(meter.rss_mib - before_mib, 1)
        if held_mib["costly bodies again"] > MAX_GROWTH_MIB:
            attacker.failed(f"the process holds more than {MAX_GROWTH_MIB} MiB more: {held_mib}")
    if (now := meter.num_series()) > series + 40:
        attacker.failed(f"{now} series of metrics, {series} before")
    if attacker.failures:
        shown = "\n".join(attacker.failures[:_MAX_SHOWN])
        raise AssertionError(
            f"{len(attacker.failures)} failures:\n{shown}\nheld MiB {held_mib}, cost at most "
            f"{attacker.worst}\nrepeat one: PYTHONPATH=tests python -m "
            f"resilience.scenarios.hostile_client --share {share} --seed {seed} --only NAME"
        )
    demo.settle()
    demo.assert_sound()
    left = check_rest(demo, at_rest)
    figures: dict[str, Any] = {
        "inputs": sum(counts.values()),
        **counts,
        "seconds": round(seconds, 1),
        "repeated": attacker.num_repeated,
        "slowness": round(attacker.slowness, 2),
        "worst": attacker.worst,
        "held_mib": held_mib,
        "statuses": {str(key): count for key, count in sorted(attacker.statuses.items())},
        **left,
    }
    rows: list[tuple[object, ...]] = [("hostile client", "requests", "MiB", "delay_s", "held MiB")]
    for kind, count in counts.items():
        worst = attacker.worst.get(kind, {"mib": 0.0, "delay_s": 0.0})
        rows.append((kind, count, worst["mib"], worst["delay_s"], held_mib[kind]))
    return table(rows), figures


def _batched(requests: Iterable[Hostile]) -> Iterator[list[Hostile]]:
    iterator = iter(requests)
    while batch := list(itertools.islice(iterator, _BATCH)):
        yield batch


def _status(answer: bytes) -> int:
    words = answer[:16].split(b" ")
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = run_parser(__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the sweeps' requests")
    parser.add_argument("--only", help="send only requests whose name has this text")
    args = parser.parse_args()
    with running() as demo:
        text, figures = run(demo, share=args.share, seed=args.seed, only=args.only)
    publish("hostile_client", text, figures, record=args.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
