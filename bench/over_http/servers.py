"""The three servers of `prefmix bench http`: their command lines, and their processes."""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefmix.bench.contestants.vllm_start import FREE_SHARE
from prefmix.bench.contestants.worker import environment
from prefmix.bench.report import progress
from prefmix.mixing.spec import MixtureSpec, Policy, hf_overrides
from prefmix.server.config.errors import CommandError

PLAIN, MIXTURE, PREFMIX = "vllm serve", "vllm serve, mixture of 1", "prefmix serve"
HOST = "127.0.0.1"
NAME = "prefmix"
"""The name of the model for clients, the same on every server."""

PREFMIX_COMMAND = Path(sys.executable).with_name("prefmix")

_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 30.0
_POLL_S = 0.2
_LAST_WORDS_CHARS = 2000

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens addresses of this machine, whatever proxies the environment names."""


def commands(
    args: argparse.Namespace, model: str, passthrough: Sequence[str]
) -> dict[str, list[str]]:
    """Each server's command line without its port; all start the same engine."""
    spec = MixtureSpec(policies=(Policy(name="one", model=model),))
    engine = [
        f"--dtype={args.dtype}",
        f"--max-model-len={args.max_model_len}",
        f"--kv-cache-memory-bytes={int(args.kv_cache_gib * 2**30)}",
        f"--gpu-memory-utilization={FREE_SHARE}",
        *([] if args.allow_unsafe_weights else ["--load-format=safetensors"]),
        *passthrough,
    ]
    plain = [sys.executable, "-m", "prefmix.bench.over_http.plain_server"]
    plain += ["--model", model, "--host", HOST]
    plain += ["--served-model-name", NAME, "--uvicorn-log-level=warning", *engine]
    ours = [str(PREFMIX_COMMAND), "serve", "--policy", f"one={model}"]
    ours += ["--allow-unsafe-weights"] if args.allow_unsafe_weights else []
    return {
        PLAIN: plain,
        MIXTURE: [*plain, f"--hf-overrides={json.dumps(hf_overrides(spec))}"],
        PREFMIX: [*ours, "--name", NAME, "--host", HOST, "--", *engine],
    }


def with_port(command: Sequence[str], port: int) -> list[str]:
    """The command with --port inserted: before `--`, if there is one."""
    at = command.index("--") if "--" in command else len(command)
    return [*command[:at], "--port", str(port), *command[at:]]


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    url: str
    pid: int

    def front_cpu_s(self) -> float:
        """Processor time so far of the process that speaks HTTP; the engine is another process."""
        import psutil  # comes with vLLM

        used = psutil.Process(self.pid).cpu_times()
        return float(used.user + used.system)


@contextmanager
def serving(name: str, command: Sequence[str], folder: Path) -> Iterator[Server]:
    """Runs a server until the block ends; yields it once it answers.

    Raises: CommandError with its last words if it ends, or takes too long, before it answers.
    """
    progress(f"starting {name}")
    port = free_port()
    url = f"http://{HOST}:{port}"
    variables = {**environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with (folder / "server.log").open("w+") as log:
        process = subprocess.Popen(
            with_port(command, port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=variables,
        )
        try:
            if not _wait_ready(process, url):
                log.seek(0)
                words = log.read()[-_LAST_WORDS_CHARS:]
                raise CommandError(f"{name} did not start; its last words:\n{words}")
            yield Server(url, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(timeout=_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with _DIRECT.open(f"{url}/health", timeout=10):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_S)
    return False


def free_port() -> int:
    """A free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
