"""Calls in a process of their own, forked from this one, with a limit of time.

vLLM changes classes of transformers and keeps process groups, and some models end the process. So
each step of a trial is a fork: it finds all imports done and leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 120.0
"""Time for a step, which takes seconds where vLLM runs the model at all."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Outcome:
    """The value or the error of a call."""

    value: Any = None
    error: str = ""
    """Name of the error's class; empty if there is a value."""
    text: str = ""


def call(
    work: Callable[..., Any], *args: Any, log: Path, limit_s: float = LIMIT_S, **kwargs: Any
) -> Outcome:
    """Calls `work`, whose value must be JSON, in a fork; its output goes to the end of `log`."""
    result = log.with_suffix(".result")
    result.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    if (child := os.fork()) == 0:
        _run(work, args, kwargs, log, result)
    deadline = time.monotonic() + limit_s
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Outcome(error="TimeoutError", text=f"no answer within {limit_s:.0f} seconds")
        time.sleep(0.02)
    if not result.exists():
        return Outcome(error="ProcessEnded", text=f"the process ended with status {status}")
    return Outcome(**json.loads(result.read_text()))


def _run(
    work: Callable[..., Any], args: Any, kwargs: dict[str, Any], log: Path, result: Path
) -> None:
    """The fork: never returns."""
    code = 1
    try:
        os.setsid()
        # Without this a step would go on for minutes when the command is killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        try:
            came = {"value": work(*args, **kwargs)}
        except BaseException as error:
            traceback.print_exc()
            root = _first_cause(error)
            came = {"error": type(root).__name__, "text": str(root)}
        result.write_text(json.dumps(came))
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _first_cause(error: BaseException) -> BaseException:
    """The error that a validation of vLLM's settings has wrapped, or the error itself."""
    while type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
        causes = [each.get("ctx", {}).get("error") for each in error.errors()]
        if not isinstance(causes[0], BaseException):
            break
        error = causes[0]
    return error
