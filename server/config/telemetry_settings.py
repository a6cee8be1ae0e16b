"""How closely the server watches itself; set once by the launcher, read in every API process."""

from __future__ import annotations

from dataclasses import dataclass

from prefmix.server.telemetry.request_log import RequestLog

TELEMETRY_ATTRIBUTE = "prefmix_telemetry"
"""Where `prefmix serve` leaves the TelemetrySettings on vLLM's parsed arguments."""

STATISTICS_EVERY = 100
"""All tokens of every so many engine steps are measured, unless the user says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TelemetrySettings:
    """What is measured and logged."""

    statistics_every: int = STATISTICS_EVERY
    """0 measures only the requests that ask."""
    request_log: RequestLog = "off"
