"""Signal handlers of a start, and what a forked engine sees of them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program's end, with a folder of modules that come first."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )


def test_a_signal_may_interrupt_the_import_of_what_its_handler_needs(tmp_path: Path) -> None:
    """vLLM imports psutil while our handlers stand."""
    (tmp_path / "psutil.py").write_text(
        textwrap.dedent(
            """
            import os, signal

            if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
                os.kill(os.getpid(), signal.SIGTERM)

            class Process:
                def children(self, recursive):
                    return []
            """
        )
    )
    program = """
        import os, signal
        from prefmix.server.launch.start_signals import StartSignals

        with StartSignals(on_signal=lambda: None, before_exit=lambda: None):
            import psutil
            os.kill(os.getpid(), signal.SIGTERM)
    """
    done = run(program, tmp_path)
    assert (done.returncode, done.stderr) == (143, "")


def test_a_second_signal_may_interrupt_the_handler_of_the_first(tmp_path: Path) -> None:
    """Events, which the handler sets, have locks that the same thread cannot take twice."""
    program = """
        import os, signal
        from prefmix.server.launch.start_signals import StartSignals

        calls = []

        def on_signal():
            calls.append(signals.asked_to_end)
            if len(calls) < 3:
                os.kill(os.getpid(), signal.SIGTERM)

        with StartSignals(on_signal=on_signal, before_exit=lambda: None) as signals:
            signal.signal(signal.SIGTERM, lambda *_: None)
            signals.ready()
            os.kill(os.getpid(), signal.SIGTERM)
        print(calls)
    """
    done = run(program, tmp_path)
    assert (done.stdout, done.stderr) == ("[True]\n", "")


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
    assert run(program, tmp_path).stdout == "7 True\n"
