"""What vLLM knows of the engine's load, brought to the counts by which requests are let in.

vLLM 0.32 can bound its requests itself (`--max-num-queued-reqs`), but only in all, running ones
included, only by a number known before the engine is, and after the body has been read and checked.
Its counters are used here instead: the number of requests of this process that the engine has not
ended, exact at any moment, and what each engine's scheduler says after a step.
"""

from __future__ import annotations

import asyncio
from typing import Any

from prefmix.server.telemetry.load_metrics import show_load
from prefmix.server.traffic.admission_control import AdmissionController, default_max_waiting
from prefmix.server.traffic.shared_counts import SharedCounts

_SHOW_S = 0.1
"""How late the metrics may be."""


def num_engines(engine_client: Any) -> int:
    """How many engines this server has: several under vLLM's data parallelism."""
    return len(engine_client.engine_core.engine_ranks_managed)


def make_admission(
    engine_client: Any, counts: SharedCounts, *, max_waiting: int | None
) -> AdmissionController:
    """The admission that fits an engine. Args: max_waiting: None derives it from the engine."""
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
    """Takes the place of vLLM's own listeners for both."""

    def __init__(self, counts: SharedCounts, admission: AdmissionController) -> None:
        self._counts = counts
        self._admission = admission
        self._showing: asyncio.TimerHandle | None = None

    def attach(self, engine_client: Any) -> None:
        """Begins to listen."""
        engine_client.output_processor.admission_stats = self
        # Without vLLM's statistics (--disable-log-stats) only max_num_seqs is known.
        if engine_client.logger_manager is not None:
            engine_client.logger_manager.stat_loggers.append(self)

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
        # Both change with every step of the engine; nobody looks that often.
        if self._showing is None:
            self._showing = asyncio.get_running_loop().call_later(_SHOW_S, self._show)

    def _show(self) -> None:
        self._showing = None
        self._admission.observe()
        show_load(self._admission.in_flight, self._admission.num_waiting)

    def log(self) -> None:
        """Nothing: vLLM's other listeners write their log here."""

    def log_engine_initialized(self) -> None:
        """Nothing."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Nothing."""

    def record_admission_rejection(self, reason: str) -> None:
        """Nothing: vLLM rejects no request here."""
