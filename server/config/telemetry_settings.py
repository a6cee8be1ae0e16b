"""Settings of metrics and logs; set by the launcher, read in every API process."""

from __future__ import annotations

from dataclasses import dataclass

from prefmix.server.telemetry.request_log import RequestLog

TELEMETRY_ATTRIBUTE = "prefmix_telemetry"
"""Name of the TelemetrySettings on vLLM's parsed arguments."""

STATISTICS_EVERY = 100
"""Default of `statistics_every`: the mixture is measured at every 100th engine step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TelemetrySettings:
    """Settings of the mixture's metrics and of the request log."""

    statistics_every: int = STATISTICS_EVERY
    """The mixture is measured at every n-th engine step; 0 measures only requests that ask."""
    request_log: RequestLog = "off"
