"""Wiring of an API process's traffic limits: admission, bodies, deadlines, drain, connections."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State

from prefmix.server.config.limits import LAST_ANSWERS_S, Limits
from prefmix.server.telemetry.load_metrics import show_max_waiting
from prefmix.server.traffic import http_server
from prefmix.server.traffic.admission_control import AdmissionController
from prefmix.server.traffic.connections import default_max_connections
from prefmix.server.traffic.drain import Drain
from prefmix.server.traffic.engine_load import EngineLoad, make_admission, num_engines
from prefmix.server.traffic.middleware import BodyLimitMiddleware, TrafficMiddleware
from prefmix.server.traffic.readiness import READINESS_KEY, Readiness
from prefmix.server.traffic.shared_counts import SharedCounts


class TrafficSetup:
    """The traffic limits of one API process. Make it in the event loop."""

    def __init__(
        self, engine_client: Any, limits: Limits, *, folder: Path | None, num_processes: int
    ) -> None:
        """Begins to count requests, and makes the engine's shutdown wait for running ones.

        Args:
          engine_client: vLLM's engine client.
          limits: the launcher's settings.
          folder: private folder of the API processes; None counts this process alone.
          num_processes: number of API processes.
        """
        rank = engine_client.vllm_config.parallel_config._api_process_rank
        self._limits = limits
        self._counts = SharedCounts(
            folder,
            process=0 if folder is None else max(rank, 0),
            num_processes=1 if folder is None else num_processes,
            num_engines=num_engines(engine_client),
        )
        self.admission: AdmissionController = make_admission(
            engine_client, self._counts, max_waiting=limits.max_waiting
        )
        show_max_waiting(self.admission.max_waiting)
        http_server.limit_all_connections(
            max_connections=limits.max_connections
            or default_max_connections(self.admission.max_answers)
        )
        EngineLoad(self._counts, self.admission).attach(engine_client)
        unfinished = engine_client.output_processor.get_num_unfinished_requests
        self._drain = Drain(timeout_s=limits.drain_timeout, unfinished=unfinished)
        self._drain.delay_shutdown(engine_client)
        self.readiness = Readiness(engine_client, self._counts, self._drain, self.admission)

    def add_middleware(self, app: FastAPI) -> None:
        """Puts the limits around all middleware that the application has so far."""
        inner = app.middleware_stack or app.build_middleware_stack()
        body_limit = BodyLimitMiddleware(inner, max_body_bytes=self._limits.max_body_bytes)
        app.middleware_stack = TrafficMiddleware(
            body_limit, admission=self.admission, drain=self._drain, limits=self._limits
        )
        setattr(app.state, READINESS_KEY, self.readiness)

    async def set_up_http_server(self, state: State) -> None:
        """Waits until vLLM has made the HTTP server; sets its shutdown's timeout."""
        while getattr(state, "server", None) is None:
            await asyncio.sleep(0.01)
        # vLLM stops the engine first; uvicorn would wait for ever for an answer lost with it.
        state.server.config.timeout_graceful_shutdown = round(LAST_ANSWERS_S)
        self._counts.start()
