"""Watch on the store's file, which reloads it when something else has replaced it.

The watch is on the folder, so that it sees a replaced file, and a Kubernetes ConfigMap, which swaps
a link above the file. Writers that replace the file atomically, as the store does, are never read
half-way. File systems without events are looked at every few seconds.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import watchfiles

from prefmix.server.admin.in_place import SlotsBusyError
from prefmix.server.admin.two_phase_commit import CommitError
from prefmix.weights.store.errors import StoreBusyError

LOOK_INTERVAL_S = 5.0
"""Seconds between two looks at the file without an event."""

_SETTLE_MS = 50
"""Milliseconds within which several events count as one."""

Fingerprint = tuple[str, int, int, int] | None


async def watch(
    path: Path,
    reload: Callable[[], Awaitable[object]],
    *,
    state: Callable[[], object] | None = None,
) -> None:
    """Calls `reload` once for each state of the file, the present one included; never returns.

    `reload` reports its own ValueErrors. After a CommitError, StoreBusyError or
    SlotsBusyError the same state is tried again later.

    Args:
      state: a value, not None, that changes with all that a reload depends on; None: the file's.
        Called in a thread after each event, and every LOOK_INTERVAL_S.
    """
    look = state or functools.partial(fingerprint, path)
    seen = await _reloaded(look, reload)
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
        if await asyncio.to_thread(look) != seen:
            seen = await _reloaded(look, reload)


def fingerprint(path: Path) -> Fingerprint:
    """A value that changes whenever the file does; None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return os.path.realpath(path), status.st_ino, status.st_mtime_ns, status.st_size


async def _reloaded(look: Callable[[], object], reload: Callable[[], Awaitable[object]]) -> object:
    """Reloads the file. Returns: the state that was loaded or refused; None to try again."""
    before = await asyncio.to_thread(look)
    try:
        await reload()
    except (CommitError, StoreBusyError, SlotsBusyError):
        return None
    except ValueError:
        return before
    return before
