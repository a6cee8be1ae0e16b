"""Watching the store's file: what is put in its place from outside is reloaded.

The folder is watched, not the file, so that a replaced file and a Kubernetes ConfigMap, which
swaps a link above the file, are seen. Only a finished replacement changes the fingerprint of a
file written as the store writes it, so half a file is never read. File systems that report no
events are looked at every few seconds.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import watchfiles

from prefmix.server.admin.two_phase_commit import CommitError

LOOK_INTERVAL_S = 5.0
"""How often the file is looked at without an event."""

_SETTLE_MS = 50
"""Events closer together than this are one."""

Fingerprint = tuple[str, int, int, int] | None


async def watch(path: Path, reload: Callable[[], Awaitable[object]]) -> None:
    """Calls `reload` once for each state of the file, the present one included; never returns.

    `reload` may raise ValueError, which it has reported itself; after a CommitError the same
    state is tried again later.
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
    """What changes whenever the file does; None while there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return os.path.realpath(path), status.st_ino, status.st_mtime_ns, status.st_size


async def _reloaded(path: Path, reload: Callable[[], Awaitable[object]]) -> Fingerprint:
    """The state that `reload` has dealt with; None if it is to be tried again."""
    before = fingerprint(path)
    try:
        await reload()
    except CommitError:
        return None
    except ValueError:
        return before
    return before
