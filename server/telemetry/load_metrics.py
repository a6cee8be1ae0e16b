"""What Prometheus sees of the load: what was taken on, what was not."""

from __future__ import annotations

from prometheus_client import Counter

from prefmix.server.telemetry.metrics import gauge

REFUSALS = ("overloaded", "draining", "body_too_large", "body_too_slow")

_REFUSED = Counter(
    "prefmix_refused",
    "Requests that were not taken on, by reason, whatever they asked.",
    ["reason"],
)
_IN_FLIGHT = gauge(
    "prefmix_requests_in_flight",
    "Answers that the server has taken on and not ended; a request for n counts n times.",
)
_WAITING = gauge(
    "prefmix_requests_waiting", "Of prefmix_requests_in_flight those that wait for the engine."
)
_MAX_WAITING = gauge(
    "prefmix_max_waiting", "How many may wait; requests beyond are refused with 503."
)
_DRAINING = gauge("prefmix_draining", "1 while the server ends and takes no more requests.")


def show_max_waiting(max_waiting: int) -> None:
    """How many requests may wait."""
    _MAX_WAITING.set(max_waiting)
    for reason in REFUSALS:
        _REFUSED.labels(reason)
    show_load(0, 0)


def show_load(in_flight: int, waiting: int) -> None:
    """How many answers are under way, and how many of them wait."""
    _IN_FLIGHT.set(in_flight)
    _WAITING.set(waiting)


def count_refused(reason: str) -> None:
    """A request was not taken on. Args: reason: one of REFUSALS."""
    _REFUSED.labels(reason).inc()


def show_draining(is_on: bool) -> None:
    """Whether the server ends."""
    _DRAINING.set(is_on)
