"""Limits on the work a server takes on; set by the launcher, read in every API process."""

from __future__ import annotations

from dataclasses import dataclass

LIMITS_ATTRIBUTE = "prefmix_limits"
"""Name of the Limits on vLLM's parsed arguments."""

MAX_BODY_BYTES = 4 * 2**20
"""Default size of the largest request body: about a million tokens of text."""

REQUEST_TIMEOUT_S = 600.0
"""Default time for a request for text; OpenAI's clients wait as long."""

DRAIN_TIMEOUT_S = 30.0
"""Default time that running requests have to end once the server is asked to end."""

MAX_CANDIDATES = 16
"""Default number of candidates that a request may have drawn for an answer."""

MAX_CANDIDATE_TOKENS = 512
"""Default length of the longest answer that is picked from candidates."""

LAST_ANSWERS_S = 2.0
"""Time for the last answers to reach their clients once nothing more is generated."""

ENGINE_END_S = 8
"""Time for the engine to end once it has no more work."""


def none_of_word(value: object) -> object:
    """Reads the word `none`, which a command line can say as well as a file, as None."""
    return None if value == "none" else value


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of one server, all its API processes together."""

    max_waiting: int | None = None
    """Most requests that may wait for the engine; None derives a number, see
    `prefmix.server.traffic.admission_control`."""
    request_timeout: float | None = REQUEST_TIMEOUT_S
    """Seconds from a request's first byte to its answer's last; None sets no limit."""
    max_body_bytes: int = MAX_BODY_BYTES
    """Most bytes of a request's body."""
    max_connections: int | None = None
    """Most connections of each API process; None derives a number, see
    `prefmix.server.traffic.connections`."""
    drain_timeout: float = DRAIN_TIMEOUT_S
    """Seconds that running requests have to end once the server is asked to end."""

    max_candidates: int = MAX_CANDIDATES
    """Most candidates for an answer; 0 serves none."""
    max_candidate_tokens: int = MAX_CANDIDATE_TOKENS
    """Longest answer that is picked from candidates, in tokens."""

    @property
    def shutdown_timeout(self) -> int:
        """Seconds for vLLM's `--shutdown-timeout`, after which vLLM kills what has not ended.

        They cover our drain, the last answers and the end of the engine.
        """
        return round(self.drain_timeout + LAST_ANSWERS_S) + ENGINE_END_S
