"""A request that vLLM could not send to the engine is forgotten by vLLM, too."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.server.traffic.engine_load import forget_what_was_not_sent


class Client:
    """The parts of vLLM's engine client that register and send a request."""

    def __init__(self) -> None:
        self.registered: list[str] = []
        self.sent: list[str] = []
        self.engine_core = SimpleNamespace(add_request_async=self._send)
        self.output_processor = SimpleNamespace(abort_requests=self._forget)

    async def add(self, name: str) -> None:
        """Registers and sends, as vLLM does."""
        self.registered.append(name)
        await self.engine_core.add_request_async(SimpleNamespace(request_id=name))

    async def _send(self, request: Any) -> None:
        if request.request_id == "too large":
            raise OverflowError("integer out of range")
        if request.request_id == "slow":
            await asyncio.sleep(60)
        self.sent.append(request.request_id)

    def _forget(self, names: list[str], *, internal: bool) -> None:
        assert internal, "the id is vLLM's own"
        for name in names:
            self.registered.remove(name)


def test_what_could_not_be_sent_is_forgotten() -> None:
    client = Client()
    forget_what_was_not_sent(client)

    async def main() -> None:
        await client.add("good")
        with pytest.raises(OverflowError):
            await client.add("too large")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await client.add("slow")

    asyncio.run(main())
    assert client.registered == client.sent == ["good"]
