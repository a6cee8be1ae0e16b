"""The pulse of a server in the engines that run on other machines: without it they end.

vLLM 0.32 watches the processes of one machine. An engine whose server has gone, with its machine or
without, would keep its memory and its node for ever. So the server calls each engine of another
machine every few seconds (prefmix.server.remote_engines), and the first call starts a watch.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from prefmix.mixing import wire

_WATCH = "_prefmix_pulse_watch"

LOOK_S = 1.0
"""Seconds between two looks."""


class PulseWatch:
    """Ends this process once no pulse has come for as long as the last one allowed."""

    def __init__(self, end: Callable[[float], None]) -> None:
        """Args: end: called with the silence in seconds, in a thread."""
        self._end = end
        self._at = time.monotonic()
        self._most_s = float("inf")
        self._thread = threading.Thread(target=self._watch, name="pulse-watch", daemon=True)

    def beat(self, most_s: float) -> None:
        """Notes a pulse. Args: most_s: the longest silence after it, in seconds."""
        self._at, self._most_s = time.monotonic(), most_s
        if not self._thread.is_alive():
            self._thread.start()

    def _watch(self) -> None:
        while (silence_s := time.monotonic() - self._at) <= self._most_s:
            time.sleep(min(LOOK_S, self._most_s))
        self._end(silence_s)


def install() -> None:
    """Gives the method to vLLM's EngineCore. Call where vLLM's engine has been imported."""
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, wire.PULSE_METHOD, beat)


def beat(core: Any, most_s: float) -> None:
    """Notes a pulse of the server.

    Args:
      core: vLLM's EngineCore.
      most_s: seconds without another one after which the engine ends.
    """
    watch: PulseWatch | None = getattr(core, _WATCH, None)
    if watch is None:
        watch = PulseWatch(_end)
        setattr(core, _WATCH, watch)
    watch.beat(most_s)


def _end(silence_s: float) -> None:
    print(
        f"prefmix: the server on the first machine has not been heard for {silence_s:.0f} s; this "
        "engine ends",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)  # the engine's thread may be in a step that never ends
