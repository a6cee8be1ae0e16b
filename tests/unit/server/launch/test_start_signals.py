"""Signal handlers of a start, and what a forked engine sees of them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path


def test_a_forked_engine_has_its_own_signals(tmp_path: Path) -> None:
    """VLLM_WORKER_MULTIPROC_METHOD=fork: its end by a signal removes nothing of the server's."""
    kept = tmp_path / "kept"
    kept.touch()
    program = f"""
        import os, pathlib, signal
        from prefmix.server.launch.start_signals import StartSignals

        path = pathlib.Path({str(kept)!r})
        with StartSignals(on_signal=lambda: None, before_exit=path.unlink):
            if (pid := os.fork()) == 0:
                signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(8)
            _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), path.exists())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "7 True\n"
