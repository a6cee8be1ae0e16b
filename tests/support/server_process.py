"""`prefmix serve` as a real process on loopback, for the tests of the server."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from prefmix.mixing.run_folder import segments
from support.leftovers import ENVIRON_AT_START
from support.preloaded_server import Forked, Preloaded

API_KEY = "test-key"
START_TIMEOUT_S = 540.0
STOP_TIMEOUT_S = 60.0

_GIVEN_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")

PREFMIX = Path(sys.executable).with_name("prefmix")


def free_port() -> int:
    """A port of loopback that nothing uses now.

    It lies below those that the system gives to connections, one of which could take it before the
    server listens on it, and is drawn, since other tests look for ports at the same time.
    """
    first_given = int(_GIVEN_PORTS.read_text().split()[0])
    end = first_given if first_given > 20_000 else 2**16  # some systems give nearly all ports
    while True:
        port = random.SystemRandom().randrange(10_000, end)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment that the tests were started with, without settings of vLLM.

    Engines of the same process change the environment, and servers must not inherit that.
    """
    kept = {
        key: value
        for key, value in ENVIRON_AT_START.items()
        if not key.startswith("VLLM_") or key == "VLLM_CACHE_ROOT"
    }
    return {**kept, **extra}


def run_prefmix(
    *words: str, timeout: float = START_TIMEOUT_S, preloaded: Preloaded | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command that is expected to end by itself; `preloaded` forks it."""
    if preloaded is not None:
        return preloaded.run(words, timeout=timeout, environ=clean_environment(**extra))
    return subprocess.run(
        [str(PREFMIX), *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=clean_environment(**extra),
        start_new_session=True,
    )


class ServerProcess:
    """One server. Call `wait_ready` before using it, and `stop` in the end."""

    def __init__(
        self,
        folder: Path,
        words: Sequence[str],
        *,
        preloaded: Preloaded | None = None,
        **extra: str,
    ) -> None:
        """Starts the server.

        Args:
          folder: where its stdout and stderr are written.
          words: what follows `prefmix serve`.
          preloaded: forks the server, in an eighth of the CPU time; the command is run without.
          extra: environment variables.
        """
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._stdout = folder / "stdout.txt"
        self._stderr = folder / "stderr.txt"
        at = words.index("--") if "--" in words else len(words)
        command = ["serve", *words[:at], "--port", str(self.port), *words[at:]]
        environ = clean_environment(**extra)
        self.process: Forked | subprocess.Popen[bytes]
        with self._stdout.open("w") as out, self._stderr.open("w") as err:
            if preloaded is not None:
                self.process = preloaded.start(
                    command, stdout=self._stdout, stderr=self._stderr, environ=environ
                )
            else:
                self.process = subprocess.Popen(
                    [str(PREFMIX), *command],
                    stdout=out,
                    stderr=err,
                    stdin=subprocess.DEVNULL,
                    env=environ,
                    start_new_session=True,
                )
        self._family: dict[int, psutil.Process] = {}

    @property
    def stdout(self) -> str:
        """The server's stdout so far."""
        return _written(self._stdout)

    @property
    def stderr(self) -> str:
        """The server's stderr so far."""
        return _written(self._stderr)

    def wait_ready(self, timeout: float = START_TIMEOUT_S) -> ServerProcess:
        """Waits for the table that says it serves."""
        deadline = time.monotonic() + timeout
        while "url " not in self.stdout:
            assert self.process.poll() is None, f"ended while starting:\n{self.stderr}"
            assert time.monotonic() < deadline, f"not ready in time:\n{self.stderr}"
            time.sleep(0.1)
        self.family()
        return self

    def wait_printed(self, text: str, timeout: float = START_TIMEOUT_S) -> None:
        """Waits until a text appears on stdout."""
        deadline = time.monotonic() + timeout
        while text not in self.stdout:
            assert time.monotonic() < deadline, self.stdout
            time.sleep(0.05)

    def wait_said(self, text: str, timeout: float = START_TIMEOUT_S) -> None:
        """Waits until a text appears on stderr."""
        deadline = time.monotonic() + timeout
        while text not in self.stderr:
            assert self.process.poll() is None, f"ended while starting:\n{self.stderr}"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def wait_family(self, size: int, timeout: float = START_TIMEOUT_S) -> None:
        """Waits until the server and its children are `size` processes."""
        deadline = time.monotonic() + timeout
        while len(self.family()) < size:
            assert self.process.poll() is None, f"ended while starting:\n{self.stderr}"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def family(self) -> list[psutil.Process]:
        """The server's process and all its children so far, ended ones included."""
        try:
            parent = psutil.Process(self.process.pid)
            for process in (parent, *parent.children(recursive=True)):
                self._family.setdefault(process.pid, process)
        except psutil.NoSuchProcess:
            pass
        return list(self._family.values())

    def survivors(self, timeout: float = STOP_TIMEOUT_S) -> list[psutil.Process]:
        """Members of the family that still run after a while."""
        _, alive = psutil.wait_procs(self.family(), timeout=timeout)
        return [process for process in alive if _runs(process)]

    def end(self, number: signal.Signals) -> int:
        """Sends one signal to the main process alone and returns its exit code."""
        self.family()
        self.process.send_signal(number)
        return self.process.wait(timeout=STOP_TIMEOUT_S)

    def interrupt(self, timeout: float = STOP_TIMEOUT_S) -> int:
        """Sends SIGINT to every process of the group, as Ctrl-C in a terminal does."""
        self.family()
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=timeout)

    def run_folder(self) -> Path:
        """The folder that this server's processes note their shared memory in."""
        pids = {process.pid for process in self.family()}
        for folder in Path(tempfile.gettempdir()).glob("prefmix-*"):
            try:
                if any(segment.pid in pids for segment in segments(folder)):
                    return folder
            except OSError:
                continue
        raise AssertionError("no process of this server has noted its shared memory")

    def kill_engine(self) -> None:
        """Kills the engine's process, as a lack of memory would."""
        (engine,) = [process for process in self.family() if "EngineCore" in process.name()]
        engine.kill()

    def kill(self) -> None:
        """Ends the whole family at once; for clean-up only."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(timeout=STOP_TIMEOUT_S)

    def client(self, *, key: str | None = API_KEY) -> httpx.Client:
        """An HTTP client of this server."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)


def _written(path: Path) -> str:
    """The content of a file; a device such as /dev/full has none, or one without an end."""
    return path.read_text() if path.is_file() else ""


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def engine_flags(**flags: Any) -> list[str]:
    """The flags of a small engine, after `--`."""
    settings = {
        "dtype": "float32",
        "max-model-len": 256,
        "max-num-seqs": 32,
        "kv-cache-memory-bytes": 2**26,  # half a second less than for prefmix's own 1 GiB
        **flags,
    }
    words = [f"--{name}={value}" for name, value in settings.items()]
    return ["--", "--enforce-eager", *words]


def policy_flags(*folders: Path) -> list[str]:
    """The flags that name each folder's policy after the folder."""
    return [word for folder in folders for word in ("--policy", f"{folder.name}={folder}")]
