"""The request log has the counts of tokens of the Responses API."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest
from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Message

from prefmix.server.telemetry import request_log
from support.text_requests import Body, mixture_state, text_request

ANSWER = {"id": "resp_1", "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}}


async def events(last: str) -> AsyncIterator[str]:
    delta = {"type": "response.output_text.delta", "delta": "event: response.completed\ndata: {}"}
    yield f"event: response.output_text.delta\ndata: {json.dumps(delta)}\n\n"
    yield f"event: {last}\ndata: {json.dumps({'type': last, 'response': ANSWER})}\n\n"


@pytest.mark.parametrize("last", ["", "response.completed", "response.incomplete"])
def test_a_line_has_the_counts_of_its_answer(last: str, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async def send(message: Message) -> None: ...

        request, lifetime = text_request(mixture_state(), send, path="/v1/responses")
        request.admit(Body())  # type: ignore[arg-type]
        response: Response = JSONResponse(ANSWER)
        if last:
            response = StreamingResponse(events(last), media_type="text/event-stream")
        answer = await request.answer(response)
        await answer(request.raw_request.scope, lifetime.receive, send)
        await lifetime.close()

    request_log.set_up("json")
    try:
        asyncio.run(main())
    finally:
        request_log.set_up("off")
        logging.getLogger("prefmix.requests").handlers = []
    line = json.loads(capfd.readouterr().err)
    assert (line["prompt_tokens"], line["completion_tokens"], line["outcome"]) == (7, 3, "ok")
