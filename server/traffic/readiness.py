"""GET /ready, the readiness probe: 200 if requests should be sent to this server now.

GET /health is vLLM's liveness probe: 200 as long as the process and its engine live. Killing a
server that is busy, ending or waiting for its engine would not help.

Overload does not make a server unready: it refuses the surplus itself. But one that for REFUSING_S
has refused everything, while no request ended, is of no use to anyone. A refused reload does not
make a server unready: the previous weights stay in force.
"""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from prefmix.server.telemetry.load_metrics import show_refusing
from prefmix.server.telemetry.stderr_logger import to_stderr
from prefmix.server.traffic.admission_control import AdmissionController
from prefmix.server.traffic.drain import Drain
from prefmix.server.traffic.shared_counts import SharedCounts

READINESS_KEY = "prefmix_readiness"
"""The attribute of `app.state` that holds a Readiness."""

PULSE_S = 5.0
"""Seconds between two pings of the engine."""

SILENCE_S = 30.0
"""Seconds without an answer after which the engine is taken to hang; a step takes less."""

REFUSING_S = 120.0
"""Seconds in which every request was refused and none has ended, after which a server is unready.
"""

_LOGGER = logging.getLogger("prefmix.readiness")


def set_up() -> None:
    """Sends the lines to stderr, whatever vLLM's log level is."""
    to_stderr(_LOGGER, logging.Formatter("%(asctime)s prefmix: %(message)s"))


class ReadyAnswer(BaseModel):
    """The answer of /ready."""

    ready: bool
    """True if requests should be sent here."""
    missing: list[str]
    """Reasons why the server is not ready, a phrase each; empty if it is."""


class Readiness:
    """The readiness of the server, as this process sees it."""

    def __init__(
        self,
        engine_client: Any,
        counts: SharedCounts,
        drain: Drain,
        admission: AdmissionController,
    ) -> None:
        self._client = engine_client
        self._counts = counts
        self._admission = admission
        self._has_refused_long = False
        self._drain = drain
        self._answered_at = time.monotonic()

    async def follow(self) -> None:
        """Pings the engine every PULSE_S seconds, as long as the server runs."""
        while not self._client.errored:
            try:
                await self._client.is_sleeping()
            except Exception:
                # The engine is ending, or dead; then `errored` says so.
                if self._drain.is_on:
                    return
            else:
                self._answered_at = time.monotonic()
            self._watch_refusals()
            await asyncio.sleep(PULSE_S)

    def missing(self) -> list[str]:
        """Reasons why the server is not ready, a phrase each; empty if it is."""
        missing = []
        if self._drain.is_on:
            missing.append("the server is ending")
        if self._client.errored:
            missing.append("the engine has died")
        elif (silence_s := time.monotonic() - self._answered_at) > SILENCE_S:
            missing.append(f"the engine has not answered for {silence_s:.0f} s")
        if (refusing_s := self._admission.refusing_s) > REFUSING_S:
            missing.append(self._refusing(refusing_s))
        started, all_of_them = self._counts.num_started, self._counts.num_processes
        if started < all_of_them:
            missing.append(f"{started} of {all_of_them} API processes have started")
        return missing

    def _watch_refusals(self) -> None:
        """Shows for how long everything has been refused; writes a line when that is too long."""
        refusing_s = self._admission.refusing_s
        show_refusing(refusing_s)
        is_long = refusing_s > REFUSING_S
        if is_long and not self._has_refused_long:
            _LOGGER.error("not ready: %s", self._refusing(refusing_s))
        elif self._has_refused_long and not is_long:
            _LOGGER.warning("requests are admitted or end again")
        self._has_refused_long = is_long

    def _refusing(self, seconds: float) -> str:
        return (
            f"every request has been refused for {seconds:.0f} s and none has ended: "
            f"{self._admission.in_flight} answers are in flight"
        )


router = APIRouter()


@router.get(
    "/ready",
    response_model=ReadyAnswer,
    responses={HTTPStatus.SERVICE_UNAVAILABLE.value: {"model": ReadyAnswer}},
)
async def ready(request: Request) -> JSONResponse:
    """200 if requests should be sent here; else 503 with what is missing."""
    readiness: Readiness = getattr(request.app.state, READINESS_KEY)
    missing = readiness.missing()
    status = HTTPStatus.SERVICE_UNAVAILABLE if missing else HTTPStatus.OK
    answer = ReadyAnswer(ready=not missing, missing=missing)
    return JSONResponse(answer.model_dump(), status_code=status)
