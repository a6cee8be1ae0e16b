"""A `prefmix serve` process on the demo policies, from its start to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from openai import OpenAIError

from prefmix.policies.demo import CHECKPOINTS
from prefmix.policies.demo.tour.terminal import ProgressLine

CONFIG = CHECKPOINTS.with_name("serve.yaml")
PROMPTS_CONFIG = CHECKPOINTS.with_name("prompts.yaml")
READY_TIMEOUT_S = 240
STOP_TIMEOUT_S = 20

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens addresses of this machine, whatever proxies the environment names."""


class TourError(Exception):
    """An error that ends the tour; its message is shown without a traceback."""


def prefmix_command() -> Path:
    """The command beside this Python. Raises: TourError if it is not installed."""
    command = Path(sys.executable).with_name("prefmix")
    if not command.exists():
        raise TourError(f"{command} does not exist; run 'make setup'")
    return command


@contextlib.contextmanager
def serving(
    log: IO[str],
    *flags: str | Path,
    config: Path = CONFIG,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Serves demo policies; yields the URL once they answer, stops the server at the end.

    Args:
      log: file for the server's output.
      config: of the server.
      flags: flags of `prefmix serve`, beside the port.
      config: the configuration that is served.
      environment: environment of the server; None is that of this process.
    Raises: TourError if it does not start, or if a request fails inside.
    """
    port = _free_port()
    process = subprocess.Popen(
        [prefmix_command(), "serve", config, "--port", str(port), *flags],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        # Ctrl-C then reaches the tour only, which stops the server in order.
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url, log)
        yield url
    except OpenAIError as error:
        raise TourError(f"a request failed: {error}{_last_lines(log)}") from None
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: IO[str]) -> None:
    progress = ProgressLine(f"Starting prefmix serve on {url.removeprefix('http://')}")
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not _answers(f"{url}/health"):
        if process.poll() is not None:
            raise TourError(f"the server ended with code {process.returncode}{_last_lines(log)}")
        if time.monotonic() > deadline:
            raise TourError(f"the server was not ready in {READY_TIMEOUT_S} s{_last_lines(log)}")
        progress.update()
        time.sleep(0.2)
    progress.done("ready")


def _answers(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _last_lines(log: IO[str]) -> str:
    log.seek(0)
    lines = [line.rstrip() for line in log if line.strip()][-6:]
    return ":\n" + textwrap.indent("\n".join(lines), "  ") if lines else " and said nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server; after a timeout by force, together with its engine."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
