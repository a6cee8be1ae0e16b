"""Runs the scripts of this folder, each in a fork of a process that has made their imports.

Nothing takes a script's pretence back, so each has a process of its own. Most of the time of such a
process goes into importing vLLM and torch's compiler, which is done once here.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

_SET_PARENT_DEATH_SIGNAL = 1
"""prctl's option for a signal at the end of the parent."""

MODULES = (
    "prefmix.mixing.engine.scheduler",
    "prefmix.mixing.models.full_checkpoints",
    "prefmix.mixing.models.shared_trunk",
    "support.checkpoints.tiny_adapters",
    "support.kernels.compilation",
    "vllm.engine.arg_utils",
    "vllm.v1.attention.backends.flash_attn",
    "vllm.v1.worker.gpu.model_runner",
)
"""Modules that the scripts import, when vLLM believes in its GPUs."""


class Scripts:
    """The process whose forks run the scripts."""

    def __init__(self, folder: Path) -> None:
        """Starts it. Args: folder: for what it writes."""
        # The interpreter of other tests would make functions of kernels that are to be compiled.
        own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        self._log = folder / "stderr.txt"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.no_device.script"],
                cwd=Path(__file__).parents[3],
                env={**own, "PYTHONPATH": "tests", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def answer_of(self, script: str, *words: str | Path) -> dict[str, Any]:
        """Runs a script with these words; returns the JSON object of its last line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([script, *map(str, words)]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer.startswith("{"), self._log.read_text()[-3000:]
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate(timeout=60)


def _serve_orders() -> None:
    """Forks for each script that is asked for, and writes its answer's line."""
    from support.no_device import fake_gpu

    fake_gpu.install()
    for module in MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection would look at all of vLLM's objects in each fork, and copy them
    for order in sys.stdin:
        answers, own = os.pipe()
        if (child := os.fork()) == 0:
            os.dup2(own, 1)
            _run(*json.loads(order))
        os.close(own)
        with os.fdopen(answers) as lines:
            *_, answer = ["", *lines]
        os.waitpid(child, 0)
        print(answer.strip() or "no answer", flush=True)


def _run(script: str, *words: str) -> NoReturn:
    """The fork: runs a script as its command does, and ends."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    sys.argv = [script, *words]
    code = 1
    try:
        importlib.import_module(f"support.no_device.{script}").main()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)  # freeing every object takes a second


if __name__ == "__main__":
    _serve_orders()
