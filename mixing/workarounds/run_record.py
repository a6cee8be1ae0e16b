"""Notes the shared memory that vLLM makes, and puts its files into the run's own folder.

The defect: vLLM 0.32 leaves /dev/shm/psm_*, and vllm_dist_* and a folder of metrics beside other
programs' files in /tmp, when its processes are killed, and nobody knows whose they were.
Delete this file when what a killed vLLM leaves says whose it was.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from multiprocessing import shared_memory
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prefmix.mixing.run_folder import VARIABLE, note

_MARK = "_prefmix_notes"


def keep_record() -> None:
    """Keeps the record in this process, if the run has a folder. May run repeatedly."""
    folder = os.environ.get(VARIABLE)
    memory: Any = shared_memory.SharedMemory
    if not folder or hasattr(memory, _MARK):
        return
    setattr(memory, _MARK, True)
    make = memory.__init__

    def make_and_note(self: Any, name: Any = None, create: bool = False, *rest: Any, **more: Any):  # type: ignore[no-untyped-def]
        make(self, name, create, *rest, **more)
        if create:
            note(Path(folder), self.name)

    memory.__init__ = make_and_note
    from vllm.utils import network_utils

    network_utils.tempfile = SimpleNamespace(gettempdir=lambda: folder)
    from vllm.v1.metrics import prometheus

    make_folder = partial(tempfile.TemporaryDirectory, prefix="metrics-", dir=folder)
    prometheus.tempfile = SimpleNamespace(TemporaryDirectory=make_folder)
