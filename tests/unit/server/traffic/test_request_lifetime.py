"""Work for a client goes on as long as the client waits, and can always clean up."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import pytest
from starlette.types import Message

from prefmix.server.traffic.request_lifetime import RequestEndedError, RequestLifetime, Termination

TOO_LATE = Termination(outcome="timeout", status=HTTPStatus.GATEWAY_TIMEOUT, message="too late")


class Work:
    """Work that waits for ever, and notes its beginning and its clean-up."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    async def __call__(self) -> None:
        self.noted.append("begun")
        try:
            await asyncio.sleep(60)
        finally:
            self.noted.append("cleaned up")


def lifetime_of(*messages: Message) -> RequestLifetime:
    """The lifetime of a request whose client sends these messages and no more."""
    left = list(messages)

    async def receive() -> Message:
        if not left:
            await asyncio.sleep(60)
        return left.pop(0)

    async def send(message: Message) -> None:
        pass

    scope: dict[str, Any] = {"type": "http", "path": "/v1/completions"}
    return RequestLifetime(scope, receive, send)


def run(main: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await main
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "nothing is left over"

    asyncio.run(bounded())


def test_work_that_ends_gives_its_result() -> None:
    async def main() -> None:
        lifetime = lifetime_of({"type": "http.request"})
        assert await lifetime.run(asyncio.sleep(0, "done")) == "done"
        await lifetime.close()

    run(main())


def test_a_client_that_disconnects_ends_the_work() -> None:
    async def main() -> None:
        lifetime, work = lifetime_of({"type": "http.disconnect"}), Work()
        with pytest.raises(RequestEndedError):
            await lifetime.run(work())
        assert work.noted == ["begun", "cleaned up"]
        later = Work()
        with pytest.raises(RequestEndedError):
            await lifetime.run(later())
        assert later.noted == ["begun", "cleaned up"], "what was begun too late cleans up as well"
        await lifetime.close()

    run(main())


def test_what_work_makes_of_its_end_is_no_answer() -> None:
    """vLLM's handlers turn a cancellation into an error response."""

    async def work() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "an error for nobody"
        raise AssertionError

    async def main() -> None:
        lifetime = lifetime_of({"type": "http.disconnect"})
        with pytest.raises(RequestEndedError):
            await lifetime.run(work())
        await lifetime.close()

    run(main())


def test_a_termination_ends_the_work_and_what_waits_for_the_client() -> None:
    async def main() -> None:
        lifetime, work = lifetime_of(), Work()
        asyncio.get_running_loop().call_later(0.01, lifetime.terminate, TOO_LATE)
        heard = asyncio.ensure_future(lifetime.receive())
        with pytest.raises(RequestEndedError):
            await lifetime.run(work())
        assert work.noted == ["begun", "cleaned up"]
        assert await heard == {"type": "http.disconnect"}
        await lifetime.close()

    run(main())


def test_whoever_is_cancelled_from_outside_is_no_client_that_disconnected() -> None:
    async def main() -> None:
        lifetime, work = lifetime_of(), Work()
        whole = asyncio.ensure_future(lifetime.run(work()))
        await asyncio.sleep(0.01)
        whole.cancel()
        with pytest.raises(asyncio.CancelledError):
            await whole
        assert work.noted == ["begun", "cleaned up"]
        await lifetime.close()

    run(main())


def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise TimeoutError("of its own")

    async def main() -> None:
        lifetime = lifetime_of()
        with pytest.raises(TimeoutError, match="of its own"):
            await lifetime.run(work())
        await lifetime.close()

    run(main())
