"""Clients that name policies which come and go, and write down every answer."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from prefmix.mixing.ways_to_mix import MIXINGS, Mixing
from resilience.checks.policy_ledger import PolicyLedger
from resilience.harness.asked_server import KEY
from resilience.harness.policy_server import BASE, OWN, PolicyServer, completion

NUM_PROMPTS = 4
"""So few that most requests find cached blocks of other versions' requests, if they may."""


@dataclass(kw_only=True)
class Asked:
    """One request as its client saw it; times are monotonic seconds."""

    prompt: tuple[int, ...]
    weights: Mapping[str, float] | None
    """None for one that names the profile."""
    mixing: Mixing
    sent_at: float
    head_at: float = 0.0
    status: int | None = None
    failure: str = ""
    """The message of an answer that is not 200, or why there was none."""
    version: int | None = None
    used: dict[str, float] = field(default_factory=dict)
    """The weights by policy that the answer says it was given."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_probe: bool = False

    def take(self, status: int, headers: Mapping[str, str], content: str) -> None:
        """Reads an answer whose head came at `head_at`."""
        self.status = status
        if status != 200:
            self.failure = str(json.loads(content)["error"]["message"])
            return
        self.version = int(headers["x-prefmix-weights-version"])
        pairs = (each.partition("=") for each in headers["x-prefmix-weights"].split(","))
        self.used = {name: float(weight) for name, _, weight in pairs}
        for choice in _choices(content):
            self.tokens += choice["token_ids"]
            self.logprobs += choice["logprobs"]["token_logprobs"]
        assert len(self.tokens) == len(self.logprobs), "each token has a log-probability"


def prompts() -> list[tuple[int, ...]]:
    """Prompts that are longer than a cached block."""
    rng = random.Random(0)
    return [tuple(rng.randrange(4, 300) for _ in range(140 + 20 * n)) for n in range(NUM_PROMPTS)]


class PolicyTraffic:
    """A number of clients, each of which asks again as soon as it has its answer."""

    def __init__(
        self, server: PolicyServer, ledger: PolicyLedger, *, seed: int, num_clients: int
    ) -> None:
        self.asked: list[Asked] = []
        self._server, self._ledger = server, ledger
        self._seed, self._num_clients = seed, num_clients
        self._prompts = prompts()

    @property
    def num_sent(self) -> int:
        """Requests sent so far."""
        return len(self.asked)

    async def run(self, *, goes_on: Callable[[], bool]) -> None:
        """Sends until `goes_on` is False, then waits until every request has an answer."""
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        # A connection for each request, so that every API process is asked.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(
            self._server.url, connector=connector, headers=headers
        ) as session:

            async def client(number: int) -> None:
                rng = random.Random(f"{self._seed}/{number}")
                while goes_on():
                    await self._send(session, rng)

            await asyncio.gather(*(client(number) for number in range(self._num_clients)))

    async def _send(self, session: aiohttp.ClientSession, rng: random.Random) -> None:
        names = [OWN, BASE, *(name for name in self._ledger.contents if name not in (OWN, BASE))]
        chosen = rng.sample(names, rng.randint(1, min(3, len(names))))
        asked = Asked(
            prompt=rng.choice(self._prompts),
            weights={name: float(rng.randint(1, 4)) for name in chosen},
            mixing=rng.choice(MIXINGS),
            sent_at=time.monotonic(),
        )
        more: dict[str, Any] = {"seed": rng.randrange(2**31), "stream": rng.random() < 0.3}
        if rng.random() < 0.1:
            asked.weights = None  # of the default profile
        self.asked.append(asked)
        body = completion(
            asked.prompt, asked.weights, asked.mixing, max_tokens=rng.randint(2, 12), **more
        )
        try:
            async with session.post("/v1/completions", json=body) as response:
                asked.head_at = time.monotonic()
                headers = {name.lower(): value for name, value in response.headers.items()}
                content = await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            asked.failure = f"{type(error).__name__} {error}"
            return
        asked.take(response.status, headers, content)


def _choices(content: str) -> list[dict[str, Any]]:
    """The choices of an answer, whole or in events."""
    if not content.startswith("data: "):
        return list(json.loads(content)["choices"])
    # Not splitlines: texts may have other characters that end a line.
    lines = (line.removeprefix("data: ") for line in content.split("\n"))
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert content.endswith("data: [DONE]\n\n"), f"a stream was cut off: {content[-300:]}"
    return [choice for event in events for choice in event["choices"]]
