"""The engines of a data-parallel group that run on other machines: a lost one ends the server.

vLLM 0.32 notices the end of an engine on its own machine only. Requests that are sent to a lost one
would wait until their deadline, and it cannot come back: engines join a group at its start. So each
is called every PULSE_S seconds, which is also how it knows that its server lives
(prefmix.mixing.engine.pulse).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from prefmix.mixing.wire import PULSE_METHOD
from prefmix.server.telemetry.stderr_logger import to_stderr

PULSE_S = 5.0
"""Seconds between two calls."""

LOST_S = 60.0
"""Seconds without an answer, or without a call, after which either side gives the other up."""

_LOGGER = logging.getLogger("prefmix.remote_engines")


def remote_ranks(engine_client: Any) -> list[int]:
    """Ranks of the engines that this server uses and another machine's `--headless` started."""
    parallel = engine_client.vllm_config.parallel_config
    if parallel.local_engines_only or parallel.data_parallel_backend != "mp":
        return []
    ranks = engine_client.engine_core.engine_ranks_managed
    return [rank for rank in ranks if rank >= parallel.data_parallel_size_local]


async def follow(engine_client: Any) -> None:
    """Calls the engines of other machines as long as the server runs; a lost one ends it."""
    to_stderr(_LOGGER, logging.Formatter("%(asctime)s prefmix: %(message)s"))
    ranks = remote_ranks(engine_client)
    await asyncio.gather(*(_follow(engine_client, rank) for rank in ranks))


async def _follow(engine_client: Any, rank: int) -> None:
    core = engine_client.engine_core
    while not engine_client.errored:
        try:
            await asyncio.wait_for(
                core._call_utility_async(PULSE_METHOD, LOST_S, engine=rank.to_bytes(2, "little")),
                LOST_S,
            )
        except TimeoutError:
            _give_up(core, rank)
            return
        except Exception:
            if engine_client.errored:  # the server is ending for another reason
                return
            raise
        await asyncio.sleep(PULSE_S)


def _give_up(core: Any, rank: int) -> None:
    """Ends the server as vLLM does when an engine of its own machine has died."""
    from vllm.v1.engine.exceptions import EngineDeadError

    _LOGGER.error(
        "engine %d, which another machine runs, has not answered for %.0f s; this server ends, and "
        "so do the other machines' engines: start all of them again",
        rank,
        LOST_S,
    )
    core.resources.engine_dead = True
    core.outputs_queue.put_nowait(EngineDeadError())
