"""The stages of an engine's start, told by its processes to the launcher by lines on stderr.

Without the variable, which the launcher of `prefmix serve` sets, nothing is told.
"""

from __future__ import annotations

import contextlib
import os

VARIABLE = "PREFMIX_START_STAGES"
"""The environment variable that asks for the lines."""

MARK = "prefmix-stage: "
"""The beginning of each line; the stage's order and text follow."""

LOADING, WARM_UP, ENGINE_RUNS, SELF_CHECK, SERVER = 100, 900, 940, 950, 990
"""Orders of the stages. The k-th checkpoint, from 0, is LOADING + k, so that there are 800. Each
engine tells ENGINE_RUNS once, when it can take requests."""


def announce(order: int, text: str) -> None:
    """Tells the launcher that a stage begins.

    Args:
      order: the stage's place; several processes may announce one, and the first counts.
      text: a phrase, such as "loading policy 2 of 3".
    """
    if os.environ.get(VARIABLE):
        # Past sys.stderr, to which vLLM adds the process's name.
        with contextlib.suppress(OSError):
            os.write(2, f"{MARK}{order} {text}\n".encode())


def announce_loading(index: int, names: list[str]) -> None:
    """Tells that a checkpoint's tensors come next; past the last one, that warming up begins.

    Args:
      index: the checkpoint, from 0.
      names: phrases for all checkpoints, such as "policy concise".
    """
    if index < len(names):
        announce(LOADING + index, f"loading {names[index]} ({index + 1} of {len(names)})")
    else:
        announce(WARM_UP, "compiling and warming up")
