"""A stream, or an answer in the background, that fails under way: its reader is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.responses import StreamingResponse
from starlette.types import Message

from prefmix.mixing import wire
from prefmix.server.http.errors import MAX_MESSAGE_CHARS
from prefmix.server.telemetry.failed_policies import FailedPolicies
from prefmix.server.telemetry.metrics import REQUESTS
from support.text_requests import Body, mixture_state, text_request

pytestmark = pytest.mark.usefixtures("vllm")


def requests(outcome: str) -> float:
    return float(REQUESTS.labels("even", outcome)._value.get())


async def read(body: AsyncIterator[Any]) -> list[str]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    request, lifetime = text_request(mixture_state(), send, path="/v1/responses")
    request.admit(Body())  # type: ignore[arg-type]
    response = await request.answer(StreamingResponse(body))
    try:
        await response(request.raw_request.scope, lifetime.receive, lifetime.send)
    finally:
        await lifetime.close()
    return [each["body"].decode() for each in sent[1:-1]]


@pytest.mark.parametrize(
    ("last", "outcome"),
    [('data: {"choices": []}\n\n', "ok"), ('data: {"error": {"message": "no"}}\n\n', "error")],
)
def test_an_error_event_makes_the_outcome(last: str, outcome: str) -> None:
    async def body() -> AsyncIterator[str]:
        yield 'data: {"choices": [1]}\n\n'
        yield last
        yield "data: [DONE]\n\n"

    before = requests(outcome)
    assert len(asyncio.run(read(body()))) == 3
    assert requests(outcome) == before + 1


@pytest.mark.parametrize(
    ("reason", "code", "says"),
    [
        (wire.to_stop_reason(["x"]), "server_error", "policy 'x' computed NaN"),
        (None, "invalid_prompt", "the structured output's regex came to a place"),
    ],
)
def test_a_failure_that_the_handler_stumbles_over_becomes_an_event(
    reason: str | None, code: str, says: str
) -> None:
    params = SimpleNamespace(structured_outputs=SimpleNamespace(regex="a"))

    async def generate(_: Any) -> AsyncIterator[Any]:
        answer = SimpleNamespace(finish_reason="error", stop_reason=reason)
        yield SimpleNamespace(outputs=[answer])

    async def body() -> AsyncIterator[str]:
        yield "event: response.created\n\n"
        try:
            async for _ in FailedPolicies(generate, ("x", "y")).generate(params):
                pass
        except Exception as error:
            if reason is None:
                raise
            raise ValueError("what it makes of the error is no event of its own") from error

    before = requests("error")
    *_, event = asyncio.run(read(body()))
    assert event.startswith("event: error\ndata: ")
    data = json.loads(event.splitlines()[1].removeprefix("data: "))
    assert data["code"] == code
    assert data["message"].startswith(says)
    assert requests("error") == before + 1


def test_a_refusal_under_way_becomes_an_event() -> None:
    """vLLM takes the first look at some parameters after it has begun its answer."""

    async def body() -> AsyncIterator[str]:
        yield "event: response.created\n\n"
        from vllm.exceptions import VLLMValidationError

        raise VLLMValidationError("Unimplemented keys: " + "x" * 10**6)

    *_, event = asyncio.run(read(body()))
    data = json.loads(event.splitlines()[1].removeprefix("data: "))
    assert (data["type"], data["code"]) == ("error", "invalid_prompt")
    assert data["message"].startswith("Unimplemented keys: x")
    assert len(data["message"]) <= MAX_MESSAGE_CHARS


def test_any_other_exception_goes_on() -> None:
    async def body() -> AsyncIterator[str]:
        yield "event: response.created\n\n"
        raise RuntimeError("a mistake of our own")

    with pytest.raises(RuntimeError, match="a mistake"):
        asyncio.run(read(body()))


@pytest.mark.parametrize("is_ours", [False, True])
def test_an_answer_in_the_background_that_raises_has_failed(is_ours: bool) -> None:
    """vLLM would call it queued for ever; a mistake of ours is reported besides."""
    from vllm.exceptions import VLLMValidationError

    error = RuntimeError("ours") if is_ours else VLLMValidationError("the client's")
    reported: list[Any] = []

    async def fail() -> None:
        raise error

    async def nobody(_: Message) -> None:
        raise AssertionError

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, found: reported.append(found))
        stored = SimpleNamespace(status="queued")
        serving = SimpleNamespace(
            background_tasks={"r": asyncio.create_task(fail())}, response_store={"r": stored}
        )
        app = SimpleNamespace(state=SimpleNamespace(openai_serving_responses=serving))
        request, lifetime = text_request(mixture_state(), nobody, app=app)
        request.admit(Body(background_id="r"))  # type: ignore[arg-type]
        await lifetime.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stored.status == "failed"

    asyncio.run(main())
    assert [found["exception"] for found in reported] == ([error] if is_ours else [])
