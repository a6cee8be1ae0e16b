"""Ends of `prefmix serve` by a signal, a kill or a process that hangs leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from prefmix.mixing.run_folder import segments
from prefmix.server.config.run_folder import remove_leftovers
from support.dying_server import END_S, dies
from support.preloaded_server import Preloaded
from support.server_process import ServerProcess, engine_flags, policy_flags

# As vLLM starts the coordinator of data-parallel engines.
_COORDINATOR = """
import multiprocessing, time
from vllm.utils.network_utils import get_open_zmq_ipc_path
from vllm.v1.engine import coordinator
from prefmix.mixing.workarounds.parent_watch import watch_parent_of_coordinator

if __name__ == "__main__":
    watch_parent_of_coordinator()
    watch_parent_of_coordinator()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    names = ("front_publish_address", "back_output_address", "back_publish_address")
    context.Process(
        target=coordinator.DPCoordinatorProc.run_coordinator,
        kwargs={
            "engine_count": 2,
            "zmq_addr_pipe": theirs,
            **{name: get_open_zmq_ipc_path() for name in names},
        },
    ).start()
    theirs.close()
    assert len(ours.recv()) == 3, "the coordinator runs"
    print("ready", flush=True)
    time.sleep(60)
"""


def words(policies: list[Path], folder: Path) -> list[str]:
    store = str(folder / "weights.json")
    return [*policy_flags(*policies[:2]), "--weights-store", store, *engine_flags()]


@pytest.mark.parametrize(
    ("number", "processes", "code"),
    [(signal.SIGTERM, 1, 143), (signal.SIGINT, 4, 130)],
)
def test_a_signal_during_the_start_ends_everything(
    policies: list[Path], tmp_path: Path, number: signal.Signals, processes: int, code: int
) -> None:
    """The signal comes with only the main process, or with the engine's and the worker's, too."""
    server = ServerProcess(tmp_path, [*policy_flags(*policies[:2]), *engine_flags()])
    try:
        server.wait_family(processes)
        server.wait_said("starting the engine")
        ended = server.interrupt() if number == signal.SIGINT else server.end(number)
        assert ended == code
        assert server.survivors() == []
        assert "Traceback" not in server.stderr
        assert server.stdout == ""
    finally:
        server.kill()


def test_a_hung_engine_is_killed_and_the_end_is_an_error(
    policies: list[Path], tmp_path: Path, preloaded: Preloaded
) -> None:
    """The shared memory goes with it, although neither process could remove it."""
    words = [*policy_flags(*policies[:2]), "--drain-timeout=0", *engine_flags()]
    server = ServerProcess(tmp_path, words, preloaded=preloaded)
    try:
        server.wait_ready()
        folder = server.run_folder()
        memory = [Path("/dev/shm") / segment.name for segment in segments(folder)]
        assert memory
        assert all(path.exists() for path in memory)
        assert any(path.is_socket() for path in folder.iterdir()), "vLLM's sockets lie elsewhere"
        (engine,) = [each for each in server.family() if "EngineCore" in each.name()]
        engine.suspend()
        assert server.end(signal.SIGTERM) == 1
        last = server.stderr.strip().splitlines()[-1]
        assert last.startswith("prefmix: error: the server failed: EngineCore"), server.stderr
        assert "did not end within" in last
        assert server.survivors() == []
        assert not any(path.exists() for path in memory)
        assert not folder.exists()
    finally:
        server.kill()


def test_a_killed_engine_ends_the_server(
    policies: list[Path], tmp_path: Path, preloaded: Preloaded
) -> None:
    """The server logs to a full disk, which neither stops nor ends it before the kill."""
    (tmp_path / "stderr.txt").symlink_to("/dev/full")
    running = ServerProcess(tmp_path, words(policies, tmp_path), preloaded=preloaded)
    try:
        running.wait_ready()
        body = {"prompt": "hello", "max_tokens": 8, "temperature": 0}
        with running.client() as client:
            assert client.post("/v1/completions", json=body).status_code == 200
        dies(running, running.kill_engine, has_log=False)
    finally:
        running.kill()


def test_a_killed_server_leaves_no_engine_behind(
    policies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start removes what it left.

    Its temporary files have a folder of their own: a server of another test that started now would
    remove them first.
    """
    with tempfile.TemporaryDirectory(prefix="killed-") as temporary:
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        running = ServerProcess(tmp_path, words(policies, tmp_path), TMPDIR=temporary)
        try:
            running.wait_ready()
            assert len(running.family()) > 2
            left = running.run_folder()
            memory = [Path("/dev/shm") / segment.name for segment in segments(left)]
            assert any(path.exists() for path in memory)
            running.process.kill()
            running.process.wait(timeout=END_S)
            began = time.monotonic()
            assert running.survivors(timeout=END_S) == []
            print(f"the others ended {time.monotonic() - began:.1f} s later")
            assert left.is_dir()
            remove_leftovers()  # as the next start does
            assert not left.exists()
            assert not any(path.exists() for path in memory)
        finally:
            running.kill()


def test_a_killed_server_leaves_no_coordinator_of_engines(tmp_path: Path) -> None:
    script = tmp_path / "launcher.py"
    script.write_text(_COORDINATOR)
    launcher = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    try:
        assert launcher.stdout.readline() == b"ready\n"
        family = psutil.Process(launcher.pid).children(recursive=True)
        assert family
        launcher.kill()
        launcher.wait(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=60)
        assert alive == []
    finally:
        launcher.stdout.close()
        launcher.kill()
