"""Clients that send shapes and write down how each request ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from resilience.harness.asked_server import KEY
from resilience.harness.demo_server import DemoServer
from resilience.inputs import shapes

TIMEOUT_S = 120.0


@dataclass(kw_only=True)
class Outcome:
    """One request as its client saw it; times are monotonic seconds."""

    id: str
    shape: shapes.Shape
    sent_at: float
    head_at: float | None = None
    ended_at: float = 0.0
    ending: str = "pending"
    """`whole`: the answer came to its end. `gone`: the client hung up. Else what went wrong."""
    status: int | None = None
    profile: str = ""
    weights: str = ""
    version: int | None = None
    finish_reasons: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """True if the request ended in one of the ways that its shape allows."""
        if self.ending == "gone":
            return self.shape.hangs_up_after_s is not None
        if self.ending != "whole":
            return False
        if self.status == 200:
            ended = len(self.finish_reasons) == self.shape.num_choices
            return self.shape.expects != "refused" and ended
        return self.shape.expects != "ok" and self.status in (400, 404)


class Traffic:
    """A number of clients, each of which asks again as soon as it has its answer."""

    def __init__(self, demo: DemoServer, *, seed: int, num_clients: int) -> None:
        self.demo = demo
        self.outcomes: list[Outcome] = []
        self._seed = seed
        self._num_clients = num_clients
        self._ids = itertools.count()

    @property
    def num_sent(self) -> int:
        """Requests sent so far."""
        return len(self.outcomes)

    async def run(self, *, goes_on: Callable[[], bool], hang_up_share: float = 0.1) -> None:
        """Sends until `goes_on` is False, then waits until every request has an outcome."""
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(
            self.demo.url, connector=connector, headers=headers, timeout=timeout
        ) as session:

            async def client(number: int) -> None:
                rng = random.Random(f"{self._seed}/{number}/{next(self._ids)}")
                while goes_on():
                    await self._send(session, shapes.draw(rng, hang_up_share=hang_up_share))

            await asyncio.gather(*(client(number) for number in range(self._num_clients)))

    async def _send(self, session: aiohttp.ClientSession, shape: shapes.Shape) -> None:
        outcome = Outcome(id=f"r{next(self._ids)}", shape=shape, sent_at=time.monotonic())
        self.outcomes.append(outcome)
        request = asyncio.create_task(_answer(session, outcome))
        done, _ = await asyncio.wait({request}, timeout=shape.hangs_up_after_s)
        if not done:
            request.cancel()  # closes the connection
            with contextlib.suppress(asyncio.CancelledError):
                await request
            outcome.ending = "gone"
        outcome.ended_at = time.monotonic()


async def _answer(session: aiohttp.ClientSession, outcome: Outcome) -> None:
    shape = outcome.shape
    headers = {"x-request-id": outcome.id}
    try:
        async with session.post(shape.path, data=shape.content, headers=headers) as response:
            outcome.head_at = time.monotonic()
            outcome.status = response.status
            outcome.profile = response.headers.get("x-prefmix-profile", "")
            outcome.weights = response.headers.get("x-prefmix-weights", "")
            version = response.headers.get("x-prefmix-weights-version")
            outcome.version = None if version is None else int(version)
            content = await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        outcome.ending = f"{type(error).__name__} {error}"
        return
    try:
        outcome.finish_reasons = list(_finish_reasons(outcome, content))
        outcome.ending = "whole"
    except (ValueError, KeyError, AssertionError) as error:
        outcome.ending = f"malformed: {error!r} in {content[-200:]!r}"


def _finish_reasons(outcome: Outcome, content: bytes) -> Iterator[str]:
    """Yields each choice's finish reason. Raises: if the answer is malformed."""
    if outcome.status != 200:
        assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
        return
    if outcome.shape.path == "/v1/responses":
        yield str(json.loads(content)["status"])
        return
    if not outcome.shape.streams:
        yield from (str(choice["finish_reason"]) for choice in json.loads(content)["choices"])
        return
    events = content.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""], "a stream ends once"
    assert events.count("data: [DONE]") == 1
    ended: Counter[int] = Counter()
    for event in events[:-2]:
        body: dict[str, Any] = json.loads(event.removeprefix("data: "))
        for choice in body["choices"]:
            assert choice["index"] not in ended, "a choice that has ended goes on"
            if choice.get("finish_reason"):
                ended[choice["index"]] += 1
                yield str(choice["finish_reason"])
