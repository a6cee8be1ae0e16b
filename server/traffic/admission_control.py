"""Admission control: the engine's capacity and a limited number of waiting requests are let in.

More requests would only wait, for longer than their clients do. All others are refused at once
with 503 and Retry-After. 429 would say that one client has sent too much. Proxies send a request
that got 503 to another server and count the failure against this one, and OpenAI's clients retry
it after the time in Retry-After.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus

from fastapi.responses import JSONResponse

from prefmix.server.http.errors import RequestError
from prefmix.server.traffic.shared_counts import SharedCounts

MAX_RETRY_AFTER_S = 60
"""OpenAI's clients ignore a longer Retry-After."""

_RATE_WINDOW_S = 10.0
_RATE_STEP_S = 0.5
_FULL_LENGTHS = 4
"""Assumed requests per longest possible context: each is taken to need a quarter of it."""

_FACTORS = "prompts x n x preference_candidates"


class OverloadedError(RequestError):
    """503: too many requests wait already, the server is ending, or a policy is replaced."""

    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        """Args:
        message: one sentence.
        retry_after_s: seconds after which the client may try again.
        """
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def response(self) -> JSONResponse:
        """The answer to send, with Retry-After."""
        response = super().response()
        response.headers["Retry-After"] = str(self.retry_after_s)
        return response


def default_max_waiting(*, max_running: int, kv_tokens: int | None, max_model_len: int) -> int:
    """The default number of waiting requests: half of what the engines can run at once.

    A request then waits about half as long as it runs.

    Args:
      max_running: vLLM's max_num_seqs, summed over all engines.
      kv_tokens: capacity of the KV caches in tokens; None if unknown.
      max_model_len: the longest context, in tokens.
    Returns: at least 1.
    """
    at_once = max_running
    if kv_tokens is not None:
        at_once = min(at_once, _FULL_LENGTHS * kv_tokens // max(max_model_len, 1))
    return max(1, at_once // 2)


class Reservation:
    """The room of one admitted request, from its admission to the end of its HTTP request.

    Its answers count as pending until vLLM counts them, answer by answer. Whatever vLLM counts,
    none of them counts after `release`.
    """

    def __init__(
        self, counts: SharedCounts, num_answers: int, *, on_release: Callable[[], None]
    ) -> None:
        self._counts = counts
        self._reserved = self._pending = num_answers
        self._on_release = on_release
        counts.add_pending(num_answers)
        counts.add_reserved(num_answers)

    def hand_over(self, count: int) -> None:
        """Lets the engine count `count` answers from now on."""
        count = min(count, self._pending)
        self._pending -= count
        self._counts.add_pending(-count)

    def release(self) -> None:
        """Ends the reservation of all answers; may be called however the request ended."""
        self.hand_over(self._pending)
        if self._reserved:
            self._counts.add_reserved(-self._reserved)
            self._reserved = 0
            self._on_release()


class AdmissionController:
    """Admits or refuses requests; all API processes decide by the same shared counts."""

    def __init__(
        self, counts: SharedCounts, *, max_running: int, num_engines: int, max_waiting: int
    ) -> None:
        """Args:
        counts: shared by the API processes.
        max_running: vLLM's max_num_seqs, of each engine.
        num_engines: size of the data-parallel group; 1 without one.
        max_waiting: how many answers may wait; 0 admits only what can run at once.
        """
        self.max_waiting = max_waiting
        self._counts = counts
        self._max_running = max_running
        self.max_answers = max_running * num_engines + max_waiting
        """Largest number of answers that one request may ask for."""
        self.on_release: Callable[[], None] = _nothing
        """Called after a reservation has ended."""
        self._rate = Rate()
        self._refusing_since: float | None = None
        self._moves = 0

    @property
    def in_flight(self) -> int:
        """Number of admitted answers that have not ended; prompts of a list and `n` count each."""
        return self._counts.in_flight

    @property
    def num_waiting(self) -> int:
        """Number of them that wait for the engine."""
        return max(0, self._excess(0))

    def check(self, num_answers: int = 1) -> None:
        """Raises OverloadedError if a request for so many answers cannot be admitted now."""
        if self._excess(num_answers) > self.max_waiting:
            self._note_refusal()
            waiting = self.num_waiting
            asked, remedy = "", ""
            if num_answers > 1:
                room = max(0, self.max_waiting - self._excess(0))
                asked = (
                    f"the request asks for {num_answers} answers ({_FACTORS}), and there is room "
                    f"for {room}; "
                )
                remedy = ", or ask for fewer at once"
            raise OverloadedError(
                f"this server is busy: {asked}requests waiting for it: {waiting}, at most "
                f"{self.max_waiting} may; try again after the seconds in Retry-After{remedy}",
                retry_after_s=self._retry_after(waiting + num_answers),
            )

    def reserve(self, num_answers: int) -> Reservation:
        """Admits a request. Args: num_answers: prompts times `n` times candidates.

        Raises: OverloadedError, or RequestError if it could never be admitted.
        """
        if num_answers > self.max_answers:
            raise RequestError(
                f"the request asks for {num_answers} answers ({_FACTORS}); this server takes at "
                f"most {self.max_answers} at once: send fewer prompts in one request, a smaller n "
                "or fewer candidates"
            )
        self.check(num_answers)
        return Reservation(self._counts, num_answers, on_release=lambda: self.on_release())

    @property
    def refusing_s(self) -> float:
        """Seconds for which this process has refused all requests and no request has ended.

        0 if there is room, or if any process has admitted or ended a request since.
        """
        since = self._refusing_since
        is_full = self._excess(1) > self.max_waiting
        if since is None or not is_full or self._moves != self._counts.num_moves:
            return 0.0
        return time.monotonic() - since

    def _note_refusal(self) -> None:
        moves = self._counts.num_moves
        if self._refusing_since is None or moves != self._moves:
            self._refusing_since, self._moves = time.monotonic(), moves

    def observe(self) -> float:
        """Finished answers per second, recently. Call it regularly while the engine works."""
        return self._rate.update(self._counts.num_finished, time.monotonic())

    def _excess(self, num_answers: int) -> int:
        return self._counts.in_flight + num_answers - self._counts.room(self._max_running)

    def _retry_after(self, waiting: int) -> int:
        per_second = self.observe()
        seconds = waiting / per_second if per_second > 0 else _RATE_WINDOW_S
        # Random, so that clients refused together do not all come back together.
        return min(math.ceil(max(seconds, 1) * random.uniform(1, 1.5)), MAX_RETRY_AFTER_S)


class Rate:
    """The rate at which a counter rises, over the last ten seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def update(self, total: int, now: float) -> float:
        """Adds a reading. Args: total: the counter's value; now: seconds on any clock.

        Returns: the rate per second; 0 if it is not known yet.
        """
        if not self._seen or now - self._seen[-1][0] >= _RATE_STEP_S:
            self._seen.append((now, total))
        while now - self._seen[0][0] > _RATE_WINDOW_S:
            self._seen.popleft()
        then, before = self._seen[0]
        return (total - before) / (now - then) if now > then else 0.0


def _nothing() -> None:
    pass
