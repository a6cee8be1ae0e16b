"""The account of one request for text: its end is counted in a metric and written to the log."""

from __future__ import annotations

import time
import uuid
from http import HTTPStatus

from fastapi import Request

from prefmix.server.api.answer_fields import Usage
from prefmix.server.api.answer_headers import REQUEST_ID_HEADER
from prefmix.server.api.resolve import Resolution
from prefmix.server.telemetry import request_log
from prefmix.server.telemetry.load_metrics import count_refused
from prefmix.server.telemetry.metrics import MIXED, NO_PROFILE, REJECTED, count_request
from prefmix.server.traffic.request_lifetime import SCOPE_KEY, RequestLifetime

CLIENT_GONE = 499
"""The status of a request whose client has disconnected, as proxies log it; nobody receives it."""

IGNORED_ATTRIBUTE = "prefmix_ignored_fields"
"""The attribute of a request's state that names the fields of its body that nothing reads."""

_MAX_ID_CHARS = 128


class Account:
    """The times, the weights and the outcome of one request. Each request is closed once."""

    def __init__(self, raw_request: Request) -> None:
        self._raw_request = raw_request
        self._began = time.perf_counter()
        self._first_byte_s: float | None = None
        self._request_id: str | None = None
        self._resolution: Resolution | None = None
        self._usage: Usage | None = None
        raw_request.state.prefmix_account = self

    @staticmethod
    def exists(raw_request: Request) -> bool:
        """True if the request has an account already."""
        return hasattr(raw_request.state, "prefmix_account")

    def admitted(self, resolution: Resolution) -> None:
        """Notes the weights of an admitted request."""
        self._resolution = resolution
        MIXED.labels(resolution.mixing).inc()

    def first_byte(self) -> None:
        """Notes the time of the first byte of a streamed answer."""
        self._first_byte_s = time.perf_counter() - self._began

    def used(self, usage: Usage | None) -> None:
        """Notes the counts of tokens that an answer itself reports; None reports none."""
        self._usage = usage or self._usage

    def refused(self, status: int, *, reason: str | None = None) -> None:
        """Closes the account of a request that did not reach the engine.

        Args:
          reason: one of prefmix.server.telemetry.metrics.REASONS if its weights were refused.
        """
        if reason is not None:
            REJECTED.labels(reason).inc()
        is_overload = status == HTTPStatus.SERVICE_UNAVAILABLE
        if is_overload:
            count_refused("overloaded")
        self.close(status, "refused" if is_overload else "rejected")

    def close(self, status: int, outcome: str | None = None) -> None:
        """Counts the request's end and writes its line of log. A termination takes precedence.

        Args:
          status: the answer's HTTP status.
          outcome: one of prefmix.server.telemetry.metrics.OUTCOMES; None follows from the status.
        """
        outcome = outcome or _outcome(status)
        resolution = self._resolution
        lifetime: RequestLifetime | None = self._raw_request.scope.get(SCOPE_KEY)
        if lifetime is not None and lifetime.termination is not None:
            outcome, status = lifetime.termination.outcome, lifetime.termination.status
        profile = NO_PROFILE if resolution is None else resolution.profile
        count_request(profile, outcome)
        if not request_log.is_on():
            return
        metadata = getattr(self._raw_request.state, "request_metadata", None)
        usage = getattr(metadata, "final_usage_info", None)
        given = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
        prompt_tokens, completion_tokens = self._usage or given
        request_log.write(
            request_id=self.request_id(),
            route=self._raw_request.url.path,
            status=int(status),
            outcome=outcome,
            profile=profile,
            weights_version=None if resolution is None else resolution.version,
            mixing=None if resolution is None else resolution.mixing,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            first_byte_s=self._first_byte_s,
            duration_s=time.perf_counter() - self._began,
            ignored_fields=self.ignored_fields,
        )

    @property
    def ignored_fields(self) -> str | None:
        """Names of the body's fields that nothing reads, for people; None if there are none."""
        names: str | None = getattr(self._raw_request.state, IGNORED_ATTRIBUTE, None)
        return names

    def request_id(self) -> str:
        """The id that came with the request, else vLLM's, else a new one."""
        if self._request_id is None:
            self._request_id = self._given_id() or f"request-{uuid.uuid4().hex[:16]}"
        return self._request_id

    def _given_id(self) -> str | None:
        metadata = getattr(self._raw_request.state, "request_metadata", None)
        given = self._raw_request.headers.get(REQUEST_ID_HEADER, "")
        # vLLM builds its own id from the given one, whatever that contains.
        for name in (given, str(getattr(metadata, "request_id", ""))):
            if name and name.isascii() and name.isprintable():
                return name[:_MAX_ID_CHARS]
        return None


def _outcome(status: int) -> str:
    if status == CLIENT_GONE:
        return "cancelled"
    if status < HTTPStatus.BAD_REQUEST:
        return "ok"
    return "rejected" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "error"
