"""A process that has imported vLLM and forks servers, for tests that start many of them.

A server imports vLLM in three processes, which is most of the CPU time of its start. Here one
import serves all servers: the API process is a fork of this process, the engine a fork of the API
process and the worker a fork of the engine, as vLLM itself does where its platform leaves it the
choice. Tests of environment variables, signals and kills run the `prefmix` command itself, and so
does all of tests/resilience.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import setproctitle

_COUNTS = "PROMETHEUS_MULTIPROC_DIR"
_LONGEST_ORDER = 1 << 20
_SET_CHILD_SUBREAPER = 36
"""prctl's option by which orphans become children of the calling process."""


MODULES = (
    "anyio._backends._asyncio",
    "compressed_tensors.quantization",
    "prefmix.mixing.engine.plugin",
    "prefmix.mixing.engine.scheduler",
    "prefmix.mixing.engine.worker_extension",
    "prefmix.mixing.models.full_checkpoints",
    "prefmix.mixing.models.shared_trunk",
    "prefmix.server.cli.serve",
    "prefmix.server.launch.launch",
    "prefmix.server.plugin",
    "prometheus_fastapi_instrumentator",
    "torch._inductor.compile_fx",
    "torch.export._trace",
    "uvicorn.protocols.websockets.auto",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.generate.api_router",
    "vllm.entrypoints.openai.api_server",
    "vllm.renderers.hf",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
)
"""The modules that a server's three processes import."""

READ_LATE = {
    "PREFMIX_ADMIN_TOKEN",
    "PREFMIX_ADMIN_TOKEN_FILE",
    "PREFMIX_API_KEY",
    "PREFMIX_API_KEY_FILE",
    "PYTEST_CURRENT_TEST",
    "VLLM_API_KEY",
}
"""Environment variables in which servers may differ."""


class Forked:
    """A child process that this process did not start itself; the part of Popen that tests use."""

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Returns the exit code, negative for a signal; None while the process runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end. Returns: the exit code. Raises: subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if timeout is not None and deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(list(self.args), timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL to the process, unless it has ended."""
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """The process that has imported vLLM."""

    def __init__(self, environ: Mapping[str, str], *, shared_counts: bool = False) -> None:
        """Starts the process.

        Args:
          environ: its environment.
          shared_counts: true for servers of several API processes, which count together.
        """
        self._environ = dict(environ)
        self._orders, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-P", str(Path(__file__))),
                *(str(theirs.fileno()), str(int(shared_counts))),
            ],
            pass_fds=[theirs.fileno()],
            env=self._environ,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    def start(
        self, words: Sequence[str], *, stdout: Path, stderr: Path, environ: Mapping[str, str]
    ) -> Forked:
        """Starts `prefmix` with these words in a session of its own, as soon as vLLM is imported.

        Args:
          environ: as this process's own but for variables that are read after the imports.
        """
        changed = {name for name, _ in self._environ.items() ^ environ.items()}
        assert changed <= READ_LATE, f"only the command can change {sorted(changed - READ_LATE)}"
        order = {
            "words": list(words),
            "stdout": str(stdout),
            "stderr": str(stderr),
            "folder": os.getcwd(),
            "environ": dict(environ),
        }
        _adopt_orphans(True)
        try:
            self._orders.send(json.dumps(order).encode())
            answer = self._orders.recv(64)
        finally:
            _adopt_orphans(False)
        assert answer, "the process that has imported vLLM ended; its stderr says why"
        return Forked(int(answer), ["prefmix", *words])

    def run(
        self, words: Sequence[str], *, timeout: float, environ: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Runs `prefmix` with these words to its end."""
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "stdout.txt"), Path(folder, "stderr.txt")
            process = self.start(words, stdout=out, stderr=err, environ=environ)
            code = process.wait(timeout)
            return subprocess.CompletedProcess(list(words), code, out.read_text(), err.read_text())

    def close(self) -> None:
        """Ends the process; servers that it forked run on."""
        self._orders.close()
        self._process.wait(timeout=60)


def fork_always() -> None:
    """Makes vLLM fork the processes that it starts from this one, whatever its platform says."""
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment,return-value]


def inspect_models_here() -> None:
    """Makes vLLM look at a model's class in this process.

    It starts a process that imports all of vLLM again, to leave CUDA alone, for each class that its
    cache does not have, and a new machine's cache has none.
    """
    registry = importlib.import_module("vllm.model_executor.models.registry")
    registry._run_in_subprocess = lambda inspect: inspect()  # type: ignore[attr-defined]


def replace_kernels_once() -> None:
    """Makes vLLM replace Triton's kernels once a process.

    Each start of an engine looks through all modules for them, half a second, also where they have
    been replaced: modules that are imported later find the replacements.
    """
    dispatcher: Any = importlib.import_module("vllm.triton_utils.dispatcher")
    register = dispatcher.register_kernels

    def once(overrides: Mapping[str, Any]) -> None:
        known = {name: replacement for name, (_, replacement) in dispatcher._registry.items()}
        new = {name: each for name, each in overrides.items() if known.get(name) is not each}
        if new:
            register(new)

    if register.__name__ != once.__name__:
        dispatcher.register_kernels = once


def ask_for_the_compiler_once() -> None:
    """Makes torch's compiler ask once what it asks in each process that compiles a function.

    A server compiles the one that counts ranks of log-probabilities, and would try the CPU's
    instructions in ten processes and hash the files of torch and Triton for it: two seconds.
    """
    codecache = importlib.import_module("torch._inductor.codecache")
    codecache.torch_key()
    codecache.CacheBase.get_system()
    no_compiler = importlib.import_module("torch._inductor.exc").InvalidCxxCompiler
    with contextlib.suppress(no_compiler):
        importlib.import_module("torch._inductor.cpu_vec_isa").pick_vec_isa()


def _adopt_orphans(yes: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _import_vllm(*, shared_counts: bool) -> None:
    """Imports, in the environment that `prefmix serve` sets, the modules of its three processes."""
    with tempfile.TemporaryDirectory() as counts:
        # The metrics' client asks at its import whether processes share their counts. Each process
        # makes files of its own in the folder that the server names later.
        if shared_counts:
            os.environ[_COUNTS] = counts
        _import_modules()
        os.environ.pop(_COUNTS, None)


def _import_modules() -> None:
    from prefmix.server.launch import environment

    environment.set_logging()
    environment.set_keep_alive()
    environment.set_no_telemetry()
    environment.set_plugins()
    install = signal.signal

    def looked_up_late(number: int, handler: Any) -> Any:
        own = signal.signal is looked_up_late
        return (install if own else signal.signal)(number, handler)

    # uvloop keeps the function that it finds, and a server puts its own in this place later.
    signal.signal = looked_up_late
    for module in MODULES:
        importlib.import_module(module)
    signal.signal = install
    inspect_models_here()
    replace_kernels_once()
    ask_for_the_compiler_once()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that it looks through
        platforms = importlib.import_module("vllm.platforms")
        platforms.current_platform.register_triton_kernel_overrides()
    setproctitle.getproctitle()  # finds its memory now; a changed environment hides it
    # A collection would look at every object of vLLM in each fork, and so copy its memory.
    gc.collect()
    gc.freeze()
    gc.unfreeze = lambda: None  # which an engine that ends calls, and then collects


def _serve_orders(orders: socket.socket) -> int | None:
    """Forks a server for each order. Returns: None at the end, in a fork the server's exit code."""
    while message := orders.recv(_LONGEST_ORDER):
        pids, between = os.pipe()
        if (child := os.fork()) == 0:
            # The server is the grandchild: as an orphan it becomes a child of the tests' process.
            if pid := os.fork():
                os.write(between, str(pid).encode())
                os._exit(0)
            for fd in (pids, between, orders.detach()):
                os.close(fd)
            return _run_prefmix(**json.loads(message))
        os.waitpid(child, 0)
        orders.send(os.read(pids, 64))
        os.close(pids)
        os.close(between)
    return None


def _run_prefmix(
    words: list[str], stdout: str, stderr: str, folder: str, environ: dict[str, str]
) -> int:
    os.setsid()
    os.environ.clear()
    os.environ.update(environ)
    for path, fd in ((stdout, 1), (stderr, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, fd)
        os.close(opened)
    os.chdir(folder)
    sys.argv = ["prefmix", *words]
    fork_always()
    from prefmix.server.cli.main import main

    return main()


def _exit(code: int | None) -> NoReturn:
    """Ends as the interpreter does, but for freeing every object of vLLM, which takes seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk
            stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_vllm(shared_counts=sys.argv[2] == "1")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _exit(_serve_orders(socket.socket(fileno=int(sys.argv[1]))))
