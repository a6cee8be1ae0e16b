"""A streamed answer ends with its client, or with its last chunk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.types import Message

from server.answer_stream import AnswerStream


class Client:
    """Takes what is sent; hangs up after so many chunks."""

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


async def answer(client: Client, events: AsyncIterator[str]) -> list[str]:
    """Sends the events; returns what has been done afterwards."""
    done: list[str] = []
    response = StreamingResponse(
        events,
        status_code=201,
        headers={"x-some": "header"},
        media_type="text/event-stream",
        background=BackgroundTask(done.append, "background"),
    )
    await AnswerStream(response)({"type": "http"}, client.receive, client.send)
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


def test_a_client_that_hangs_up_ends_it_while_it_waits_for_more() -> None:
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
        async with asyncio.timeout(5):
            assert await answer(client, events()) == ["background"]
        assert (client.text, ended) == ("a", ["events"])

    asyncio.run(main())


def test_an_error_of_the_answer_is_no_client_that_hung_up() -> None:
    async def events() -> AsyncIterator[str]:
        yield "a"
        raise TimeoutError("of its own")

    async def main() -> None:
        with pytest.raises(TimeoutError, match="of its own"):
            await answer(Client(), events())
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
