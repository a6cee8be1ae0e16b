"""Watch on the store's file, which reloads it when something else has replaced it.

The watch is on the folder, so that it sees a replaced file, and a Kubernetes ConfigMap, which swaps
a link above the file. Writers that replace the file atomically, as the store does, are never read
half-way. File systems without events are looked at every few seconds.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import watchfiles

from prefmix.server.admin.two_phase_commit import CommitError
from prefmix.weights.store.errors import StoreBusyError

LOOK_INTERVAL_S = 5.0
"""Seconds between two looks at the file without an event."""

_SETTLE_MS = 50
"""Milliseconds within which several events count as one."""

Fingerprint = tuple[str, int, int, int] | None


async def watch(path: Path, reload: Callable[[], Awaitable[object]]) -> None:
    """Calls `reload` once for each state of the file, the present one included; never returns.

    `reload` reports its own ValueErrors. After a CommitError or StoreBusyError the same state is
    tried again later.
    """
    seen = await _reloaded(path, reload)
    changes = watchfiles.awatch(
        path.parent,
        watch_filter=None,
        debounce=4 * _SETTLE_MS,
        step=_SETTLE_MS,
        rust_timeout=int(LOOK_INTERVAL_S * 1000),
        yield_on_timeout=True,
        recursive=False,
    )
    async for _ in changes:
        if fingerprint(path) != seen:
            seen = await _reloaded(path, reload)


def fingerprint(path: Path) -> Fingerprint:
    """A value that changes whenever the file does; None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return os.path.realpath(path), status.st_ino, status.st_mtime_ns, status.st_size


async def _reloaded(path: Path, reload: Callable[[], Awaitable[object]]) -> Fingerprint:
    """Reloads the file. Returns: the state that was loaded or refused; None to try again."""
    before = fingerprint(path)
    try:
        await reload()
    except (CommitError, StoreBusyError):
        return None
    except ValueError:
        return before
    return before
