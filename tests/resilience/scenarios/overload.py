"""Overload: many times more requests than a server can answer.

    python -m resilience.scenarios.overload [--seconds 300] [--factor 10] [--record]

First, as many clients as the engine runs at once each send their next request when the last one is
answered: that rate is the capacity. Then requests arrive at `--factor` times that rate, regardless
of the answers. Then the load stops, and probes are sent until one is answered as fast as at
capacity (recovered), and one as fast as at rest: all admitted requests are answered by then. Prints
a table, then one line of JSON; exit code 1 if one of the promises below does not hold.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from resilience.harness.asked_server import KEY
from resilience.harness.demo_server import DemoServer, running, total
from resilience.harness.report import publish, run_parser, table

MAX_TIMES_P99 = 2.0
MIN_THROUGHPUT = 0.9
MAX_RECOVERY_S = 5.0
"""The promises of a server under overload. Relative to the same server at capacity: the p99 latency
of admitted requests, and the answers a second. After the overload: the time until a request is
admitted and answered within the p99 at capacity. Every status is 200 or 503."""

CACHE_BYTES = 256 * 2**20
"""The cache of the demo's own configuration: room for all requests that run at once."""

_PROMPTS = ("Review the Park Hotel.", "Write to a friend about the weather.", "What is rain?")
_LENGTHS = (64, 128, 192, 256)
_RAMP_S = 3.0
_PROBE_TOKENS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """One request; times are monotonic seconds."""

    sent_at: float
    ended_at: float
    status: int
    """The HTTP status; 0 for no answer, or a broken one."""
    retry_after: str | None = None
    error: str | None = None
    """The client's error, if the status is 0."""

    @property
    def latency_s(self) -> float:
        return self.ended_at - self.sent_at


class Load:
    """Sends requests and keeps how they ended."""

    def __init__(self, demo: DemoServer, session: aiohttp.ClientSession, *, seed: int) -> None:
        self._url = f"{demo.url}/v1/completions"
        self._session = session
        self._random = random.Random(seed)
        self.endings: list[Ending] = []

    async def send(self, max_tokens: int | None = None) -> Ending:
        """One request, read to its end. Every second one is a stream."""
        body = {
            "prompt": self._random.choice(_PROMPTS),
            "max_tokens": max_tokens or self._random.choice(_LENGTHS),
            "ignore_eos": True,
            "stream": self._random.random() < 0.5,
        }
        sent_at, status, retry_after, error = time.monotonic(), 0, None, None
        try:
            async with self._session.post(self._url, json=body) as response:
                text = await response.text()
                status = response.status
                retry_after = response.headers.get("retry-after")
                if status == 200 and body["stream"] and not text.endswith("data: [DONE]\n\n"):
                    status, error = 0, f"a stream that ends with {text[-80:]!r}"
        except (aiohttp.ClientError, TimeoutError) as problem:
            status, error = 0, f"{type(problem).__name__}: {problem}"
        ending = Ending(
            sent_at=sent_at,
            ended_at=time.monotonic(),
            status=status,
            retry_after=retry_after,
            error=error,
        )
        self.endings.append(ending)
        return ending

    async def closed(self, *, num_clients: int, seconds: float) -> None:
        """Each client sends its next request when the last has ended."""
        until = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < until:
                await self.send()

        await asyncio.gather(*(client() for _ in range(num_clients)))

    async def opened(self, *, rate: float, seconds: float) -> None:
        """Requests arrive as a Poisson process of `rate` a second; returns when all have ended."""
        tasks: set[asyncio.Task[Ending]] = set()
        began = due = time.monotonic()
        while due < began + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self.send())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += self._random.expovariate(rate)
        await asyncio.gather(*tasks)


async def measure(
    demo: DemoServer, *, seconds: float, capacity_s: float, factor: float, clients: int, seed: int
) -> tuple[str, dict[str, Any]]:
    """Runs all three parts. Returns: a table, and the figures."""
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {KEY}"}
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout
    ) as session:
        idle_s = await _idle_latency(Load(demo, session, seed=seed))
        calm = Load(demo, session, seed=seed)
        began = time.monotonic()
        await calm.closed(num_clients=clients, seconds=capacity_s)
        at_capacity = summary(calm.endings, began + _RAMP_S, began + capacity_s)

        storm = Load(demo, session, seed=seed + 1)
        began = time.monotonic()
        rate = factor * at_capacity["per_second"]
        pouring = asyncio.create_task(storm.opened(rate=rate, seconds=seconds))
        await asyncio.sleep(seconds)
        after = Load(demo, session, seed=seed)
        recovery_s, rest_s = await _recovery(after, at_capacity["p99_s"], idle_s)
        await pouring
        in_storm = summary(storm.endings, began + _RAMP_S, began + seconds)

    figures: dict[str, Any] = {
        "factor": factor,
        "seconds": seconds,
        "max_waiting": total(demo.metrics(), "prefmix_max_waiting"),
        "sent_per_second": round(len(storm.endings) / seconds, 1),
        "statuses": {str(status): count for status, count in sorted(_statuses(storm).items())},
        "errors": dict(Counter(each.error for each in storm.endings if each.error).most_common(3)),
        "idle_s": round(idle_s, 3),
        "p99_times": round(in_storm["p99_s"] / at_capacity["p99_s"], 2),
        "throughput": round(in_storm["per_second"] / at_capacity["per_second"], 3),
        "recovery_s": round(recovery_s, 2),
        "rest_s": round(rest_s, 2),
        "without_retry_after": sum(
            each.status == 503 and each.retry_after is None for each in storm.endings
        ),
    }
    rows: list[Sequence[object]] = [
        ("", "sent/s", "answered/s", "refused", "other", "p50 s", "p99 s", "refusal p99 ms")
    ]
    for name, part in (("at capacity", at_capacity), (f"{factor:g} times that", in_storm)):
        figures[name] = {key: round(value, 3) for key, value in part.items()}
        rows.append((name, *part.values()))
    return f"{table(rows)}\n{_verdict(figures)}", figures


def summary(endings: Sequence[Ending], since: float, until: float) -> dict[str, float]:
    """The rates and latencies of requests between two moments."""
    sent = [each for each in endings if since <= each.sent_at < until]
    answered = [each for each in endings if each.status == 200 and since <= each.ended_at < until]
    latencies = [each.latency_s for each in sent if each.status == 200]
    refusals = [each.latency_s for each in sent if each.status == 503]
    span_s = until - since
    return {
        "sent_per_second": len(sent) / span_s,
        "per_second": len(answered) / span_s,
        "refused": len(refusals),
        "other": sum(each.status not in (200, 503) for each in sent),
        "p50_s": quantile(latencies, 0.5),
        "p99_s": quantile(latencies, 0.99),
        "refusal_p99_ms": 1000 * quantile(refusals, 0.99),
    }


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile of the values; 0 if there are none."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else 0.0


def broken_promises(figures: dict[str, Any]) -> list[str]:
    """The promises that do not hold, a phrase each."""
    found = {
        "a status other than 200 and 503": bool(figures["statuses"].keys() - {"200", "503"}),
        "a 503 without Retry-After": figures["without_retry_after"] > 0,
        f"p99 above {MAX_TIMES_P99:g} times that at capacity": figures["p99_times"] > MAX_TIMES_P99,
        f"fewer than {MIN_THROUGHPUT:g} of the answers": figures["throughput"] < MIN_THROUGHPUT,
        f"recovery in more than {MAX_RECOVERY_S:g} s": figures["recovery_s"] > MAX_RECOVERY_S,
    }
    return [phrase for phrase, is_so in found.items() if is_so]


async def _idle_latency(load: Load) -> float:
    for _ in range(5):  # the first ones are slower
        await load.send(_PROBE_TOKENS)
    latencies = [(await load.send(_PROBE_TOKENS)).latency_s for _ in range(20)]
    return quantile(latencies, 0.9)


async def _recovery(load: Load, p99_s: float, idle_s: float) -> tuple[float, float]:
    """(seconds until a request is sent that is answered within `p99_s`, seconds until one is sent
    that is answered within twice its time at rest)."""
    began = time.monotonic()
    recovered: float | None = None
    while True:
        ending = await load.send(_PROBE_TOKENS)
        if ending.status == 200 and ending.latency_s <= p99_s and recovered is None:
            recovered = ending.sent_at - began
        if ending.status == 200 and ending.latency_s <= 2 * idle_s:
            return recovered or 0.0, ending.sent_at - began
        await asyncio.sleep(0.05)


def _statuses(load: Load) -> Counter[int]:
    return Counter(each.status for each in load.endings)


def _verdict(figures: dict[str, Any]) -> str:
    broken = broken_promises(figures)
    return (
        f"statuses {figures['statuses']}; p99 {figures['p99_times']:g} times that at capacity; "
        f"throughput {figures['throughput']:g} of capacity; recovered in "
        f"{figures['recovery_s']:g} s, at rest in {figures['rest_s']:g} s\n"
        + (f"BROKEN: {'; '.join(broken)}" if broken else "all promises hold")
    )


def run(
    demo: DemoServer,
    *,
    seconds: float,
    capacity_s: float,
    factor: float = 10,
    clients: int = 64,
    seed: int = 0,
) -> tuple[str, dict[str, Any]]:
    """Calls `measure` for callers without an event loop."""
    return asyncio.run(
        measure(
            demo, seconds=seconds, capacity_s=capacity_s, factor=factor, clients=clients, seed=seed
        )
    )


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = run_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="of overload; default 300")
    parser.add_argument("--capacity-seconds", type=float, default=60, help="default 60")
    parser.add_argument("--factor", type=float, default=10, help="times the capacity; default 10")
    parser.add_argument("--clients", type=int, default=64, help="at capacity; default 64")
    parser.add_argument("--api-servers", type=int, default=1, help="API processes; default 1")
    args = parser.parse_args()
    words = ["--", f"--kv-cache-memory-bytes={CACHE_BYTES}"]
    if args.api_servers > 1:
        words.append(f"--api-server-count={args.api_servers}")
    with running(*words) as demo:
        text, figures = run(
            demo,
            seconds=args.seconds,
            capacity_s=args.capacity_seconds,
            factor=args.factor,
            clients=args.clients,
            seed=args.seed,
        )
    publish("overload", text, figures | {"api_servers": args.api_servers}, record=args.record)
    return int(bool(broken_promises(figures)))


if __name__ == "__main__":
    sys.exit(main())
