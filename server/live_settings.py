"""What the launcher tells every API process about changing weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LIVE_ATTRIBUTE = "prefmix_live"
"""Where `prefmix serve` leaves the LiveSettings on vLLM's parsed arguments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveSettings:
    """Set once, before the processes start."""

    folder: Path
    """Private to this server: where its API processes meet."""
    store: Path | None = None
    """The store's file; None serves the configuration's profiles unchanged."""
    admin_port: int | None = None
    """A port of loopback for the admin routes alone; None has them on the main port."""
