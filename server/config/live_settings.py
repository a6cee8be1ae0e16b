"""What the launcher tells every API process about changing weights."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefmix.server.config.errors import CommandError

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


@contextmanager
def live_settings(weights_store: str | None, admin_port: int | None) -> Iterator[LiveSettings]:
    """The settings of changing weights, with a folder that exists as long as the server."""
    try:
        temporary = tempfile.TemporaryDirectory(prefix="prefmix-", ignore_cleanup_errors=True)
    except OSError as error:
        raise CommandError(
            f"cannot make a temporary folder: {error}; make room there, or name another place with "
            "TMPDIR"
        ) from None
    with temporary as folder, _held(folder):
        store = None if weights_store is None else Path(weights_store).absolute()
        yield LiveSettings(folder=Path(folder), store=store, admin_port=admin_port)


@contextmanager
def _held(folder: str) -> Iterator[None]:
    """Locks a folder, which tells those who tidy /tmp up to leave it alone."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)
