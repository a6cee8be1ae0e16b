"""Which requests are taken on: as many as the engine can run and a bounded number that wait.

More would only wait: an answer would come later than its client has patience, and work that nobody
waits for would keep others out. Those beyond are refused at once with 503 and Retry-After. Not with
429, which says that this one client has sent too much: proxies send a 503 to another server and
count it as this server's, and OpenAI's clients retry it after the time that Retry-After names.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from http import HTTPStatus

from fastapi.responses import JSONResponse

from prefmix.server.http.errors import RequestError
from prefmix.server.traffic.shared_counts import SharedCounts

MAX_RETRY_AFTER_S = 60
"""OpenAI's clients ignore a longer Retry-After."""

_RATE_WINDOW_S = 10.0
_RATE_STEP_S = 0.5
_FULL_LENGTHS = 4
"""A request is taken to need a quarter of the longest possible context, where the KV cache is
measured in requests."""


class OverloadedError(RequestError):
    """503: too many requests wait already, or the server is ending."""

    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        """Args:
        message: one sentence.
        retry_after_s: when to try again.
        """
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def response(self) -> JSONResponse:
        """The answer to send, with Retry-After."""
        response = super().response()
        response.headers["Retry-After"] = str(self.retry_after_s)
        return response


def default_max_waiting(*, max_running: int, kv_tokens: int | None, max_model_len: int) -> int:
    """Half of what the engine can run at once, so that a request waits about half as long as it
    then takes.

    Args:
      max_running: vLLM's max_num_seqs, over all engines.
      kv_tokens: tokens that the KV caches hold; None if unknown.
      max_model_len: the longest context, in tokens.
    Returns: at least 1.
    """
    at_once = max_running
    if kv_tokens is not None:
        at_once = min(at_once, _FULL_LENGTHS * kv_tokens // max(max_model_len, 1))
    return max(1, at_once // 2)


class Ticket:
    """One request's place, from its admission until the engine counts it itself."""

    def __init__(self, counts: SharedCounts, cost: int) -> None:
        self._counts = counts
        self._pending = cost
        counts.add_pending(cost)

    def handed_over(self, count: int) -> None:
        """The engine counts so many of it from now on."""
        count = min(count, self._pending)
        self._pending -= count
        self._counts.add_pending(-count)

    def release(self) -> None:
        """The request has ended, whether or not it reached the engine."""
        self.handed_over(self._pending)


class AdmissionController:
    """Lets requests in, in every API process by the same counts."""

    def __init__(
        self, counts: SharedCounts, *, max_running: int, num_engines: int, max_waiting: int
    ) -> None:
        """Args:
        counts: shared by the API processes.
        max_running: vLLM's max_num_seqs, of each engine.
        num_engines: of a data-parallel group; 1 without.
        max_waiting: how many may wait. With 0 a request is let in only if it can run at once.
        """
        self.max_waiting = max_waiting
        self._counts = counts
        self._max_running = max_running
        self.most = max_running * num_engines + max_waiting
        """How many answers one request may ask for."""
        self._rate = Rate()

    @property
    def in_flight(self) -> int:
        """Requests let in and not ended, each answer of n and each prompt of a list for itself."""
        return self._counts.in_flight

    @property
    def num_waiting(self) -> int:
        """How many of them wait for the engine."""
        return max(0, self._excess(0))

    def check(self, cost: int = 1) -> None:
        """Whether one more can be let in. Args: cost: number of answers it asks for.

        Raises: OverloadedError.
        """
        if self._excess(cost) > self.max_waiting:
            waiting = self.num_waiting
            raise OverloadedError(
                f"this server is busy: requests waiting for it: {waiting}, at most "
                f"{self.max_waiting} may; try again after the seconds in Retry-After",
                retry_after_s=self._retry_after(waiting + cost),
            )

    def take(self, cost: int, *, param: str | None = None) -> Ticket:
        """Lets a request in. Args: cost: as in `check`; param: the field that made it so large.

        Raises: OverloadedError, or RequestError if it could never be let in.
        """
        if cost > self.most:
            raise RequestError(
                f"the request asks for {cost} answers (n for each prompt); this server takes at "
                f"most {self.most} at once: send fewer prompts in one request, or a smaller n",
                param=param,
            )
        self.check(cost)
        return Ticket(self._counts, cost)

    def observe(self) -> float:
        """Answers per second of late; to be called while the engine works."""
        return self._rate.update(self._counts.num_finished, time.monotonic())

    def _excess(self, cost: int) -> int:
        return self._counts.in_flight + cost - self._counts.room(self._max_running)

    def _retry_after(self, waiting: int) -> int:
        per_second = self.observe()
        seconds = waiting / per_second if per_second > 0 else _RATE_WINDOW_S
        # Spread out, so that those refused together do not come back together.
        return min(math.ceil(max(seconds, 1) * random.uniform(1, 1.5)), MAX_RETRY_AFTER_S)


class Rate:
    """How fast a counter rises, over the last ten seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def update(self, total: int, now: float) -> float:
        """The rate per second; 0 if nothing is known. Args: total: of the counter; now: seconds."""
        if not self._seen or now - self._seen[-1][0] >= _RATE_STEP_S:
            self._seen.append((now, total))
        while now - self._seen[0][0] > _RATE_WINDOW_S:
            self._seen.popleft()
        then, before = self._seen[0]
        return (total - before) / (now - then) if now > then else 0.0
