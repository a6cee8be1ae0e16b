"""What the engine's workers measure, brought to this API process by vLLM's RPC.

Under vLLM's data parallelism a call reaches the first engine only, so that only its share is seen.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from prefmix.server.telemetry.metrics import MixtureMetrics

INTERVAL_S = 5.0
"""How often the sample is taken from the engine: more often than Prometheus scrapes by default."""

_STOPPING = "Server shutting down"
"""What vLLM's engine core answers to a call while it finishes its last requests (vLLM 0.32)."""

Figures = dict[int, list[list[float]]]

_CHILD = re.compile(r"(\d+)_(?:chat)?cmpl-")


class EngineStoppingError(Exception):
    """The engine takes no more calls: the server is ending in order."""


class EngineStatistics:
    """The engine's measurements, as this process sees them."""

    def __init__(self, engine_client: Any, metrics: MixtureMetrics, *, every: int) -> None:
        """Args:
        every: all tokens of each n-th step are measured; 0 only those of requests that ask.
        """
        self._client = engine_client
        self._metrics = metrics
        self._every = every

    async def start(self) -> None:
        """Has the workers begin, and leave Ctrl-C to this process."""
        await self._call_all("prefmix_ignore_interrupts")
        await self._call_all("prefmix_check_rows")
        await self._call("prefmix_observe", self._every)
        self._metrics.sizes(await self._call("prefmix_sizes"))

    async def follow(self) -> None:
        """Takes the sample again and again, as long as the server runs."""
        while self._every:
            await asyncio.sleep(INTERVAL_S)
            try:
                sample = await self._call("prefmix_take_sample")
            except EngineStoppingError:
                return
            if sample is not None:
                self._metrics.measured(sample)

    async def take(self, key: str, sample: int | None = None) -> Figures:
        """A request's figures by sample, and forgets them.

        Args:
          key: under which the engine kept them.
          sample: only this one of n; None takes all.
        """
        try:
            found = await self._call("prefmix_take_request", key, sample)
        except EngineStoppingError:  # the answer is there; only its attribution is lost
            return {}
        return {sample_of(req_id): rows for req_id, rows in (found or {}).items()}

    async def _call_all(self, method: str) -> None:
        """Calls all engines of a data-parallel group; vLLM's own call reaches the first."""
        core = self._client.engine_core
        await core.call_utility_all_async("collective_rpc", method, None, (), {})

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            answers = await self._client.collective_rpc(method, args=args)
        except Exception as error:
            if _STOPPING in str(error):
                raise EngineStoppingError from error
            raise
        # Ranks that do not gather logits have nothing to say.
        return next((answer for answer in answers if answer), answers[0])


def sample_of(req_id: str) -> int:
    """Which of a prompt's n samples the engine's request is; vLLM puts it in front for n > 1."""
    match = _CHILD.match(req_id)
    return int(match[1]) if match else 0
