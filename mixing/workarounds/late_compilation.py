"""Keeps vLLM from counting kernels that prefmix compiles before the first request as surprises.

The defect: vLLM 0.32 watches a GPU's kernels from the end of its own warm-up on. Each one that is
compiled later is a warning of a latency spike, and with --jit-monitor-mode error an exception. The
engine's check of itself (prefmix.mixing.engine.self_check) is a warm-up that follows vLLM's.
Delete this file when vllm.utils.jit_monitor can be told that a warm-up goes on.
"""

from __future__ import annotations

import functools
from typing import Any


def expect_compilation(is_expected: bool) -> None:
    """Switches vLLM's monitor of this process off, or on again. May run repeatedly."""
    from vllm.utils import jit_monitor

    found: Any = jit_monitor._handle_jit_event
    original = getattr(found, "__wrapped__", found)

    @functools.wraps(original)
    def ignore(**_: Any) -> None:
        return

    jit_monitor._handle_jit_event = ignore if is_expected else original
