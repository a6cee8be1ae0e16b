"""A process that hangs is killed whatever its children do meanwhile.

The defect: vLLM 0.32 asks each child of such a process for its name, for the log, and kills neither
the other children nor the process if that child has ended by then; the server lives on.
Delete this file when `vllm.v1.utils` kills a process tree past children that have ended.
"""

from __future__ import annotations

import contextlib


def kill_past_ended_children() -> None:
    """Puts `kill_tree` in the place of vLLM's function, where that is used. May run repeatedly."""
    from vllm.v1 import utils

    utils.kill_process_tree = kill_tree


def kill_tree(pid: int) -> None:
    """Kills the descendants of a process and the process, as far as they still are."""
    import psutil  # type: ignore[import-untyped,unused-ignore]  # comes with vLLM

    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (*parent.children(recursive=True), parent):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
