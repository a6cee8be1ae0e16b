"""The cost of requests to the process that answers them: memory at its peak, and stalls.

Both are measured in the process: the kernel keeps the peak of its resident memory, and the server
the delays of its event loop (`prefmix_event_loop_delay_seconds`).
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

from prefmix.server.telemetry.event_loop_metrics import BUCKETS
from resilience.harness.demo_server import DemoServer

KIB = 2**10
REFERENCE_S = 0.0125
"""The time of `slowness`'s work on the machine of the budgets.

Measured: 0.0103 s (CPython 3.11, an Intel Xeon of two cores at load 3); a fifth more is scatter.
"""
_BUCKET = re.compile(r'^prefmix_event_loop_delay_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.M)
_IN_FLIGHT = re.compile(r"^prefmix_requests_in_flight (\S+)$", re.M)
_SETTLE_S = 0.06
"""Seconds after which the event loop's delay has been noted."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that one request may cost."""

    mib: float
    delay_s: float
    """One of the histogram's limits."""

    def at(self, slowness: float) -> Budget:
        """The same budget on a slower machine: the histogram's next limit from there."""
        limits = (limit for limit in BUCKETS if limit >= self.delay_s * slowness)
        return replace(self, delay_s=min(limits, default=BUCKETS[-1]))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of some requests together."""

    mib: float
    """The peak of the resident memory above the memory before them."""
    delay_s: float
    """The highest of the histogram's limits that the event loop's delay passed; 0 if none."""

    def exceeds(self, budget: Budget) -> bool:
        """True if it is more than one request may cost."""
        return self.mib > budget.mib or self.delay_s >= budget.delay_s

    def __str__(self) -> str:
        return f"+{self.mib:.1f} MiB, event loop delayed by more than {self.delay_s:g} s"


def slowness() -> float:
    """The time that this machine takes to read 1 MiB of JSON, over `REFERENCE_S`; at least 1."""
    text = json.dumps([{"name": "value", "number": 1.5}] * (2**20 // 34))

    def seconds() -> float:
        began = time.perf_counter()
        json.loads(text)
        return time.perf_counter() - began

    return max(1.0, min(seconds() for _ in range(5)) / REFERENCE_S)


class Meter:
    """Measures the API process of a server with one such process."""

    def __init__(self, demo: DemoServer) -> None:
        self._demo = demo
        self._proc = Path(f"/proc/{demo.server.process.pid}")
        self._before_kib = 0
        self._delays: dict[float, float] = {}

    def begin(self) -> None:
        """Begins a measurement."""
        self._delays = self._delayed()
        (self._proc / "clear_refs").write_text("5")  # the peak begins anew
        self._before_kib = self._status("VmRSS")

    def end(self) -> Cost:
        """Ends the measurement."""
        peak_kib = self._status("VmHWM")
        time.sleep(_SETTLE_S)
        after = self._delayed()
        passed = [limit for limit in after if after[limit] > self._delays[limit]]
        mib = max(0, peak_kib - self._before_kib) / KIB
        return Cost(mib=mib, delay_s=max(passed, default=0.0))

    @property
    def rss_mib(self) -> float:
        """The resident memory now."""
        return self._status("VmRSS") / KIB

    def in_flight(self) -> float:
        """The requests that the server believes to be in flight."""
        found = _IN_FLIGHT.search(self._page())
        assert found is not None
        return float(found[1])

    def num_series(self) -> int:
        """The number of the mixture's series."""
        return len(re.findall(r"^prefmix_", self._page(), re.M))

    def _delayed(self) -> dict[float, float]:
        """Number of delays above each limit."""
        below = {float(limit): float(count) for limit, count in _BUCKET.findall(self._page())}
        return {limit: below[float("inf")] - count for limit, count in below.items()}

    def _page(self) -> str:
        return str(self._demo.ask("GET", "/metrics").body)

    def _status(self, name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+) kB", (self._proc / "status").read_text(), re.M)
        assert found is not None
        return int(found[1])
