"""GET /ready: whether requests should be sent here now. GET /health is vLLM's, and says only
whether the process and its engine live: a server that is busy, ending or does not get an answer
from its engine is not better off killed.

Neither being overloaded (the server says so itself, to those who are too many) nor a refused reload
(the weights before it serve) makes a server unready.
"""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from prefmix.server.traffic.drain import Drain
from prefmix.server.traffic.shared_counts import SharedCounts

READINESS_KEY = "prefmix_readiness"
"""The attribute of `app.state` that holds a Readiness."""

PULSE_S = 5.0
"""How often the engine is asked for a sign of life."""

SILENCE_S = 30.0
"""An engine that has not answered for so long is taken to hang; a step takes less."""


class ReadyAnswer(BaseModel):
    """What /ready answers."""

    ready: bool
    """Whether requests should be sent here."""
    missing: list[str]
    """What there is to wait for, a phrase each; empty if ready."""


class Readiness:
    """What this process knows of the server's state."""

    def __init__(self, engine_client: Any, counts: SharedCounts, drain: Drain) -> None:
        self._client = engine_client
        self._counts = counts
        self._drain = drain
        self._answered_at = time.monotonic()

    async def follow(self) -> None:
        """Asks the engine again and again, as long as the server runs."""
        while not self._client.errored:
            try:
                await self._client.is_sleeping()
            except Exception:
                # It is ending, or dead; then `errored` says so.
                if self._drain.is_on:
                    return
            else:
                self._answered_at = time.monotonic()
            await asyncio.sleep(PULSE_S)

    def missing(self) -> list[str]:
        """What there is to wait for, a phrase each."""
        missing = []
        if self._drain.is_on:
            missing.append("the server is ending")
        if self._client.errored:
            missing.append("the engine has died")
        elif (silence_s := time.monotonic() - self._answered_at) > SILENCE_S:
            missing.append(f"the engine has not answered for {silence_s:.0f} s")
        started, all_of_them = self._counts.num_started, self._counts.num_processes
        if started < all_of_them:
            missing.append(f"{started} of {all_of_them} API processes have started")
        return missing


router = APIRouter()


@router.get(
    "/ready",
    response_model=ReadyAnswer,
    responses={HTTPStatus.SERVICE_UNAVAILABLE.value: {"model": ReadyAnswer}},
)
async def ready(request: Request) -> JSONResponse:
    """Whether requests should be sent here; if not, what there is to wait for."""
    readiness: Readiness = getattr(request.app.state, READINESS_KEY)
    missing = readiness.missing()
    status = HTTPStatus.SERVICE_UNAVAILABLE if missing else HTTPStatus.OK
    answer = ReadyAnswer(ready=not missing, missing=missing)
    return JSONResponse(answer.model_dump(), status_code=status)
