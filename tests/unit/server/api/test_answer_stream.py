"""A streamed answer ends with its client, or with its last chunk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from http import HTTPStatus
from typing import Any

import pytest
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.types import Message, Send

from prefmix.server.api.answer_stream import AnswerStream
from prefmix.server.traffic.request_lifetime import RequestLifetime, Termination

TOO_LATE = Termination(outcome="timeout", status=HTTPStatus.GATEWAY_TIMEOUT, message="too late")


class Client:
    """Takes what is sent; disconnects after so many chunks."""

    def __init__(self, *, stays_for: int | None = None) -> None:
        self.sent: list[Message] = []
        self._stays_for = stays_for
        self._gone = asyncio.Event()

    async def receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if self._stays_for is not None and len(self.sent) > self._stays_for:
            self._gone.set()

    @property
    def text(self) -> str:
        return b"".join(each.get("body", b"") for each in self.sent).decode()


async def send_all(chunks: AsyncIterable[Any], send: Send) -> None:
    async for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk.encode(), "more_body": True})


async def answer(
    client: Client, events: AsyncIterator[str], *, terminated_after_s: float | None = None
) -> list[str]:
    """Sends the events; returns what has been done afterwards."""
    done: list[str] = []
    response = StreamingResponse(
        events,
        status_code=201,
        headers={"x-some": "header"},
        media_type="text/event-stream",
        background=BackgroundTask(done.append, "background"),
    )
    scope: dict[str, Any] = {"type": "http", "path": "/v1/completions"}
    lifetime = RequestLifetime(scope, client.receive, client.send)
    if terminated_after_s is not None:
        asyncio.get_running_loop().call_later(terminated_after_s, lifetime.terminate, TOO_LATE)
    try:
        await AnswerStream(response, send_all)(scope, lifetime.receive, lifetime.send)
    finally:
        await lifetime.close()
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1, "the listener has ended"
    return done


def test_a_whole_answer_is_what_starlette_would_send() -> None:
    async def events() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(0)
        yield "b"

    async def main() -> None:
        client = Client()
        assert await answer(client, events()) == ["background"]
        assert client.text == "ab"
        assert client.sent[0]["status"] == 201
        assert (b"x-some", b"header") in client.sent[0]["headers"]
        kinds = [value for name, value in client.sent[0]["headers"] if name == b"content-type"]
        assert kinds == [b"text/event-stream; charset=utf-8"]
        assert [each.get("more_body") for each in client.sent[1:]] == [True, True, False]

    asyncio.run(main())


def test_a_client_that_disconnects_ends_it_while_it_waits_for_more() -> None:
    ended = []

    async def events() -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.sleep(60)
            yield "b"
        finally:
            ended.append("events")

    async def main() -> None:
        client = Client(stays_for=1)
        async with asyncio.timeout(30):
            assert await answer(client, events()) == ["background"]
        assert (client.text, ended) == ("a", ["events"])

    asyncio.run(main())


def test_a_termination_ends_it_and_the_client_is_told() -> None:
    ended = []

    async def events() -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.sleep(60)
        finally:
            ended.append("events")

    async def main() -> None:
        client = Client()
        async with asyncio.timeout(30):
            assert await answer(client, events(), terminated_after_s=0.01) == ["background"]
        assert ended == ["events"]
        assert client.text.startswith('adata: {"error"')
        assert '"too late"' in client.text
        assert client.sent[-1]["more_body"] is False

    asyncio.run(main())


def test_a_client_that_had_gone_before_ends_it_at_its_first_wait() -> None:
    async def events() -> AsyncIterator[str]:
        await asyncio.sleep(60)
        yield "a"

    async def main() -> None:
        client = Client(stays_for=0)
        async with asyncio.timeout(30):
            await answer(client, events())
        assert client.text == ""

    asyncio.run(main())


def test_an_error_of_the_answer_is_no_client_that_disconnected() -> None:
    async def events() -> AsyncIterator[str]:
        yield "a"
        raise TimeoutError("of its own")

    async def main() -> None:
        with pytest.raises(TimeoutError, match="of its own"):
            await answer(Client(), events())
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
