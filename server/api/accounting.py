"""What is noted of every request for text: how it ended, in a metric and one line of log.

Also where an answer gets the fields that are only known in the end: `preference_attribution`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterable
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Send

from prefmix.server.api.answer_stream import AnswerStream
from prefmix.server.api.attribution import FIELD, Attribution, describe
from prefmix.server.api.resolve import Resolution
from prefmix.server.telemetry import request_log
from prefmix.server.telemetry.engine_statistics import EngineStatistics
from prefmix.server.telemetry.failed_policies import failure
from prefmix.server.telemetry.load_metrics import count_refused
from prefmix.server.telemetry.metrics import NO_PROFILE, REJECTED, REQUESTS
from prefmix.server.traffic.request_lifetime import SCOPE_KEY, RequestLifetime

CLIENT_GONE = 499
"""Nobody reads this status; it is what proxies log for a client that hung up."""

REQUEST_ID_HEADER = "x-request-id"
_MAX_ID_CHARS = 128
_ERROR_EVENT = b'data: {"error"'
"""How vLLM tells a client in the middle of a stream that the answer has failed."""


class Account:
    """One request, from its arrival to its last byte."""

    def __init__(self, raw_request: Request, statistics: EngineStatistics) -> None:
        self._raw_request = raw_request
        self._statistics = statistics
        self._began = time.perf_counter()
        self._first_byte_s: float | None = None
        self._request_id: str | None = None
        self._resolution: Resolution | None = None
        self._attribution: Attribution | None = None
        self._num_samples = 1
        raw_request.state.prefmix_account = self

    @staticmethod
    def is_open(raw_request: Request) -> bool:
        """Whether the request has got as far as to have one."""
        return hasattr(raw_request.state, "prefmix_account")

    def admitted(
        self, resolution: Resolution, attribution: Attribution, *, num_samples: int
    ) -> None:
        """The request's weights are known."""
        self._resolution = resolution
        self._num_samples = num_samples
        if attribution.is_wanted:
            self._attribution = attribution

    def refused(self, reason: str | None, status: int) -> None:
        """It was refused before it reached the engine. Args: reason: if because of its weights."""
        if reason is not None:
            REJECTED.labels(reason).inc()
        is_overload = status == HTTPStatus.SERVICE_UNAVAILABLE
        if is_overload:
            count_refused("overloaded")
        self._close("refused" if is_overload else "rejected", status)

    async def answered(self, response: Response) -> Response:
        """The engine's answer has begun, or is there; the account ends with its last byte."""
        headers = {} if self._resolution is None else self._resolution.headers()
        headers[REQUEST_ID_HEADER] = self.request_id()
        response.raw_headers += [(name.encode(), each.encode()) for name, each in headers.items()]
        if isinstance(response, StreamingResponse):
            return AnswerStream(response, self._send_all)
        if self._attribution is not None and response.status_code == HTTPStatus.OK:
            response = await self._with_attribution(response)
        elif self._attribution is not None:
            await self._drop()
        self._close(_outcome(response.status_code), response.status_code)
        return response

    async def failed(self, status: int) -> None:
        """The handler raised, which is answered with `status`."""
        await self._drop()
        self._close(_outcome(status), status)

    async def _send_all(self, chunks: AsyncIterable[Any], send: Send) -> None:
        """Ends the account with the last chunk."""
        outcome, status, has_failed = "cancelled", int(CLIENT_GONE), False
        try:
            async for chunk in chunks:
                data = chunk.encode() if isinstance(chunk, str) else chunk
                has_failed = has_failed or data.startswith(_ERROR_EVENT)
                if self._first_byte_s is None:
                    self._first_byte_s = time.perf_counter() - self._began
                if self._attribution is not None:
                    data = await self._amended(data)
                await send({"type": "http.response.body", "body": data, "more_body": True})
            outcome, status = ("error" if has_failed else "ok"), HTTPStatus.OK
        except Exception:
            outcome, status = "error", HTTPStatus.INTERNAL_SERVER_ERROR
            event = error_event()
            if event is None:
                raise
            await send({"type": "http.response.body", "body": event, "more_body": True})
        finally:
            self._close(outcome, status)
            if outcome != "ok":
                await self._drop()

    async def _amended(self, chunk: bytes) -> bytes:
        """Puts the attribution into the chunks that end a choice."""
        events = chunk.decode().split("\n\n")
        for place, event in enumerate(events):
            if not event.startswith("data: {"):
                continue
            body = json.loads(event.removeprefix("data: "))
            ended = [each for each in body.get("choices", []) if each.get("finish_reason")]
            for choice in ended:
                choice[FIELD] = await self._of_choice(choice["index"])
            if ended:
                events[place] = "data: " + json.dumps(body, ensure_ascii=False)
        return "\n\n".join(events).encode()

    async def _with_attribution(self, response: Response) -> Response:
        body = json.loads(bytes(response.body))
        for choice in body["choices"]:
            choice[FIELD] = await self._of_choice(choice["index"])
        headers = {
            name: value
            for name, value in response.headers.items()
            if name not in ("content-length", "content-type")
        }
        return JSONResponse(body, headers=headers)

    async def _of_choice(self, choice: int) -> dict[str, Any] | None:
        assert self._attribution is not None
        assert self._resolution is not None
        key, sample = self._attribution.place(choice, num_samples=self._num_samples)
        only = sample if self._num_samples > 1 else None
        rows = (await self._statistics.take(key, only)).get(sample)
        if rows is None:  # another engine of a data-parallel group has it
            return None
        weights = dict(zip(self._resolution.member_names, self._resolution.weights, strict=True))
        return describe(rows, weights, by_token=self._attribution.by_token)

    async def _drop(self) -> None:
        for key in self._attribution.keys if self._attribution is not None else []:
            await self._statistics.take(key)

    def request_id(self) -> str:
        """The id that came with the request, else vLLM's, else a new one."""
        if self._request_id is None:
            self._request_id = self._given_id() or f"request-{uuid.uuid4().hex[:16]}"
        return self._request_id

    def _given_id(self) -> str | None:
        metadata = getattr(self._raw_request.state, "request_metadata", None)
        given = self._raw_request.headers.get(REQUEST_ID_HEADER, "")
        # vLLM makes its id of the given one, whatever that holds.
        for name in (given, str(getattr(metadata, "request_id", ""))):
            if name and name.isascii() and name.isprintable():
                return name[:_MAX_ID_CHARS]
        return None

    def _close(self, outcome: str, status: int) -> None:
        resolution = self._resolution
        lifetime: RequestLifetime | None = self._raw_request.scope.get(SCOPE_KEY)
        if lifetime is not None and lifetime.termination is not None:
            outcome, status = lifetime.termination.outcome, lifetime.termination.status
        profile = NO_PROFILE if resolution is None else resolution.profile
        REQUESTS.labels(profile, outcome).inc()
        if not request_log.is_on():
            return
        metadata = getattr(self._raw_request.state, "request_metadata", None)
        usage = getattr(metadata, "final_usage_info", None)
        request_log.write(
            request_id=self.request_id(),
            route=self._raw_request.url.path,
            status=int(status),
            outcome=outcome,
            profile=profile,
            weights_version=None if resolution is None else resolution.version,
            prompt_tokens=getattr(usage, "prompt_tokens", None),
            completion_tokens=getattr(usage, "completion_tokens", None),
            first_byte_s=self._first_byte_s,
            duration_s=time.perf_counter() - self._began,
        )


def error_event() -> bytes | None:
    """The last event of a stream in the Responses API that a policy has failed; None if none has.

    vLLM 0.32 stumbles over its own error there, so that the stream would break off.
    """
    message = failure.get()
    if message is None:
        return None
    body = {"type": "error", "code": "server_error", "message": message, "param": None}
    return f"event: error\ndata: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


def _outcome(status: int) -> str:
    if status == CLIENT_GONE:
        return "cancelled"
    if status < HTTPStatus.BAD_REQUEST:
        return "ok"
    return "rejected" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "error"
