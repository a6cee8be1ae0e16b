"""Prometheus metrics of the load: requests in flight, waiting and refused."""

from __future__ import annotations

from prometheus_client import Counter

from prefmix.server.telemetry.metrics import gauge

REFUSALS = (
    "overloaded",
    "draining",
    "body_too_large",
    "body_too_slow",
    "head_too_large",
    "too_many_connections",
    "unknown_host",
)
"""Reasons for which a request is not admitted, whatever it asks for."""

_REFUSED = Counter(
    "prefmix_refused",
    "Requests that were not taken on, by reason, whatever they asked.",
    ["reason"],
)
_IN_FLIGHT = gauge(
    "prefmix_requests_in_flight",
    "Answers that the server has accepted and not ended; a request for n answers counts n times.",
)
_WAITING = gauge(
    "prefmix_requests_waiting", "Answers of prefmix_requests_in_flight that wait for the engine."
)
_MAX_WAITING = gauge(
    "prefmix_max_waiting", "Most answers that may wait; requests for more are refused with 503."
)
_REFUSING = gauge(
    "prefmix_refusing_seconds",
    "Seconds for which every request was refused and none has ended; 0 if there is room.",
)
_DRAINING = gauge("prefmix_draining", "1 while the server is ending and takes no more requests.")


def show_max_waiting(max_waiting: int) -> None:
    """Shows how many requests may wait, and makes the other series exist."""
    _MAX_WAITING.set(max_waiting)
    for reason in REFUSALS:
        _REFUSED.labels(reason)
    show_load(0, 0)
    show_refusing(0)


def show_load(in_flight: int, waiting: int) -> None:
    """Shows how many answers are in flight, and how many of them wait."""
    _IN_FLIGHT.set(in_flight)
    _WAITING.set(waiting)


def show_refusing(seconds: float) -> None:
    """Shows for how long every request was refused while none has ended."""
    _REFUSING.set(seconds)


def count_refused(reason: str) -> None:
    """Counts a refused request. Args: reason: one of REFUSALS."""
    _REFUSED.labels(reason).inc()


def show_draining(is_on: bool) -> None:
    """Shows whether the server is ending."""
    _DRAINING.set(is_on)
