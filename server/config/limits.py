"""How much work the server takes on; set once by the launcher, read in every API process."""

from __future__ import annotations

from dataclasses import dataclass

LIMITS_ATTRIBUTE = "prefmix_limits"
"""Where `prefmix serve` leaves the Limits on vLLM's parsed arguments."""

MAX_BODY_BYTES = 4 * 2**20
"""Largest request body, unless the user says otherwise: about a million tokens of text."""

DRAIN_TIMEOUT_S = 30.0
"""How long requests under way have to end once the server is asked to, unless told otherwise."""

LAST_ANSWERS_S = 2.0
"""How long answers may take to go out once nothing more is generated."""

ENGINE_END_S = 8
"""How long the engine may take to end once it has nothing more to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The traffic limits of one server, over all its API processes."""

    max_waiting: int | None = None
    """How many requests may wait for the engine; None derives it, see
    `prefmix.server.traffic.admission_control`."""
    request_timeout: float | None = None
    """Seconds a request may take from its first byte to its answer's last; None has no bound."""
    max_body_bytes: int = MAX_BODY_BYTES
    """Bytes of a request's body."""
    drain_timeout: float = DRAIN_TIMEOUT_S
    """Seconds that requests under way have to end once the server is asked to."""

    @property
    def shutdown_timeout(self) -> int:
        """vLLM's `--shutdown-timeout` in seconds, after which it kills what has not ended: it has
        to leave time for the drain, which is ours, and for the end of the engine."""
        return round(self.drain_timeout + LAST_ANSWERS_S) + ENGINE_END_S
