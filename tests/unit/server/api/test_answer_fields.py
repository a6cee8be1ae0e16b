"""Answers say in their bodies which weights were used; the request log has counts of tokens."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest
from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Message

from prefmix.server.api.answer_fields import with_field
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


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (b'{"id":"x"}', b'{"prefmix":1,"id":"x"}'),
        (b'data: {"id": "x"}\n\n', b'data: {"prefmix":1,"id": "x"}\n\n'),
        (
            b'event: response.created\ndata: {"a":{"b":1}}\n\ndata: {"c":2}\n\n',
            b'event: response.created\ndata: {"prefmix":1,"a":{"b":1}}\n\ndata: {"c":2}\n\n',
        ),
        (b"data: [DONE]\n\n", b"data: [DONE]\n\n"),
        (b": a comment\n\n", b": a comment\n\n"),
        (b"{}", b"{}"),
        (b"", b""),
        (b'xxxxx{"a":1}', b'xxxxx{"a":1}'),
    ],
)
def test_a_field_is_added_to_the_first_object(answer: bytes, wanted: bytes) -> None:
    assert with_field(answer, b'"prefmix":1') == wanted


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_says_in_its_body_which_weights_were_used(streams: bool) -> None:
    sent: list[Message] = []

    async def main() -> Response:
        async def send(message: Message) -> None:
            sent.append(message)

        request, lifetime = text_request(mixture_state(), send, path="/v1/responses")
        request.admit(Body())  # type: ignore[arg-type]
        response: Response = JSONResponse(ANSWER)
        if streams:
            response = StreamingResponse(events("response.completed"))
        answer = await request.answer(response)
        await answer(request.raw_request.scope, lifetime.receive, send)
        await lifetime.close()
        return answer

    answer = asyncio.run(main())
    bodies = [message["body"] for message in sent if message["type"] == "http.response.body"]
    found = [
        json.loads(body[body.index(b"{") :].strip())["prefmix"]
        for body in bodies
        if b'"prefmix"' in body
    ]
    assert len(found) == 1
    assert bodies[0].count(b'"prefmix"') == 1
    pairs = [f"{name}={weight:.9g}" for name, weight in found[0]["weights"].items()]
    assert ",".join(pairs) == answer.headers["x-prefmix-weights"]
    assert found[0]["profile"] == answer.headers["x-prefmix-profile"]
    assert str(found[0]["weights_version"]) == answer.headers["x-prefmix-weights-version"]
    if not streams:
        assert int(answer.headers["content-length"]) == len(b"".join(bodies))
