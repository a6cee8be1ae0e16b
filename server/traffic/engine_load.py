"""The engine's load, copied from vLLM's counters to the SharedCounts that admission reads.

vLLM 0.32 has a limit of its own (`--max-num-queued-reqs`), but it counts running requests as well,
must be known before the engine starts, and acts after the body has been read and checked. Two of
vLLM's counters are used here instead: the number of unfinished requests of this process, always
exact, and what each engine's scheduler reports after a step.
"""

from __future__ import annotations

import asyncio
from typing import Any

from prefmix.server.telemetry.load_metrics import show_load
from prefmix.server.traffic.admission_control import AdmissionController, default_max_waiting
from prefmix.server.traffic.shared_counts import SharedCounts

_SHOW_S = 0.1
"""Seconds by which the metrics may lag."""


def num_engines(engine_client: Any) -> int:
    """Number of engines; more than 1 under vLLM's data parallelism."""
    return len(engine_client.engine_core.engine_ranks_managed)


def make_admission(
    engine_client: Any, counts: SharedCounts, *, max_waiting: int | None
) -> AdmissionController:
    """The controller for an engine. Args: max_waiting: None derives it from the engine's size."""
    config = engine_client.vllm_config
    engines = num_engines(engine_client)
    max_running = config.scheduler_config.max_num_seqs
    if max_waiting is None:
        kv_tokens = getattr(config.cache_config, "kv_cache_size_tokens", None)
        max_waiting = default_max_waiting(
            max_running=max_running * engines,
            kv_tokens=None if kv_tokens is None else kv_tokens * engines,
            max_model_len=config.model_config.max_model_len,
        )
    return AdmissionController(
        counts, max_running=max_running, num_engines=engines, max_waiting=max_waiting
    )


class EngineLoad:
    """A listener that vLLM calls as its `admission_stats` and as one of its `stat_loggers`."""

    def __init__(self, counts: SharedCounts, admission: AdmissionController) -> None:
        self._counts = counts
        self._admission = admission
        self._showing: asyncio.TimerHandle | None = None
        admission.on_release = self._show_soon

    def attach(self, engine_client: Any) -> None:
        """Registers this listener with vLLM."""
        engine_client.output_processor.admission_stats = self
        # Without vLLM's statistics (--disable-log-stats) only max_num_seqs is known.
        if engine_client.logger_manager is not None:
            engine_client.logger_manager.stat_loggers.append(self)
        forget_what_was_not_sent(engine_client)

    def set_num_requests(self, count: int) -> None:
        """vLLM calls this whenever a request is added, ends or is dropped."""
        self._counts.set_num_requests(count)
        self._show_soon()

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """vLLM calls this with the outputs of each step; one of the processes gets the first."""
        if iteration_stats is not None:
            self._counts.add_finished(len(iteration_stats.finished_requests))
        if scheduler_stats is not None:
            self._counts.report(
                engine_idx,
                running=scheduler_stats.num_running_reqs,
                waiting=scheduler_stats.num_waiting_reqs,
            )
        self._show_soon()

    def _show_soon(self) -> None:
        # The counts change with every step of the engine; metrics are read far less often.
        if self._showing is None:
            self._showing = asyncio.get_running_loop().call_later(_SHOW_S, self._show)

    def _show(self) -> None:
        self._showing = None
        self._admission.observe()
        show_load(self._admission.in_flight, self._admission.num_waiting)

    def log(self) -> None:
        """Does nothing; vLLM's other listeners write their log here."""

    def log_engine_initialized(self) -> None:
        """Does nothing."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Does nothing."""

    def record_admission_rejection(self, reason: str) -> None:
        """Does nothing; vLLM's own limit is off, so it rejects no request."""


def forget_what_was_not_sent(engine_client: Any) -> None:
    """Makes vLLM forget a request that it could not send to the engine.

    vLLM 0.32 registers a request before it encodes it, and unless it has several samples, leaves it
    registered if that raises: it would count as unfinished for ever, and a drain would wait for it.
    """
    add_request = engine_client.engine_core.add_request_async

    async def add_or_forget(request: Any) -> None:
        try:
            await add_request(request)
        except BaseException:
            engine_client.output_processor.abort_requests([request.request_id], internal=True)
            raise

    engine_client.engine_core.add_request_async = add_or_forget
