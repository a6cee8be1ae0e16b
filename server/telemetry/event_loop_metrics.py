"""The delays of this process's event loop, as a Prometheus histogram.

All requests of an API process share one event loop. While one of them computes, every other waits,
and so do /health and the streams of all clients. A task that sleeps for a moment and measures how
late it wakes sees each such stall, whoever caused it.
"""

from __future__ import annotations

import asyncio
import time

from prometheus_client import Histogram

INTERVAL_S = 0.02
"""Seconds of sleep between two measurements. A stall may be up to this longer than it is counted;
one measurement takes a few microseconds."""

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_DELAY = Histogram(
    "prefmix_event_loop_delay_seconds",
    "Delay of a task that sleeps 20 ms, again and again, in the event loop of an API process: the "
    "time for which requests of that process had to wait for each other.",
    buckets=BUCKETS,
)


async def follow() -> None:
    """Measures the running loop's delays, as long as the server runs."""
    while True:
        # Not the loop's own clock: uvloop's stands still while the loop is blocked.
        due = time.monotonic() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        _DELAY.observe(max(0.0, time.monotonic() - due))
