"""The measurements of the engine's workers, fetched by vLLM's RPC.

Under vLLM's data parallelism a call reaches only the first engine, so only its share is seen.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from prefmix.server.telemetry.metrics import MixtureMetrics

INTERVAL_S = 5.0
"""Interval between samples, shorter than Prometheus' default interval between scrapes."""

_STOPPING = "Server shutting down"
"""The error of vLLM 0.32's engine core for a call while it finishes its last requests."""

Figures = dict[int, list[list[float]]]
"""Index among a prompt's n samples -> rows of figures, one a measured token."""

_CHILD = re.compile(r"(\d+)_(?:chat)?cmpl-")


class EngineStoppingError(Exception):
    """The engine takes no more calls, because the server is ending in order."""


class EngineStatistics:
    """The engine's measurements, for the metrics and for requests that ask for attribution."""

    def __init__(self, engine_client: Any, metrics: MixtureMetrics, *, every: int) -> None:
        """Args:
        engine_client: vLLM's.
        metrics: where samples go.
        every: measures all tokens of every n-th step; 0 measures only requests that ask.
        """
        self._client = engine_client
        self._metrics = metrics
        self._every = every

    async def start(self) -> None:
        """Starts the measurements in the workers, and makes them leave Ctrl-C to this process."""
        await self._call_all("prefmix_ignore_interrupts")
        await self._call_all("prefmix_check_rows")
        await self._call("prefmix_start_statistics", self._every)
        self._metrics.sizes(await self._call("prefmix_sizes"))

    async def follow(self) -> None:
        """Adds a sample to the metrics every INTERVAL_S, as long as the server runs."""
        while self._every:
            await asyncio.sleep(INTERVAL_S)
            try:
                sample = await self._call("prefmix_take_sample")
            except EngineStoppingError:
                return
            if sample is not None:
                self._metrics.measured(sample)

    async def take(self, key: str, sample: int | None = None) -> Figures:
        """Takes a request's figures from the engine, which forgets them.

        Args:
          key: the key under which the engine kept them.
          sample: index of the one sample to take; None takes all.
        """
        try:
            found = await self._call("prefmix_take_request", key, sample)
        except EngineStoppingError:  # the answer goes out, without its attribution
            return {}
        return {sample_of(req_id): rows for req_id, rows in (found or {}).items()}

    async def _call_all(self, method: str) -> None:
        """Calls all engines of a data-parallel group; vLLM's own call reaches only the first."""
        core = self._client.engine_core
        await core.call_utility_all_async("collective_rpc", method, None, (), {})

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            answers = await self._client.collective_rpc(method, args=args)
        except Exception as error:
            if _STOPPING in str(error):
                raise EngineStoppingError from error
            raise
        # Ranks that do not gather logits answer nothing.
        return next((answer for answer in answers if answer), answers[0])


def sample_of(req_id: str) -> int:
    """Index of an engine's request among its prompt's n samples; vLLM prefixes it for n > 1."""
    match = _CHILD.match(req_id)
    return int(match[1]) if match else 0
