"""A process for one contestant, which receives its work as lines of JSON.

Engines do not share a process well, and a process that ends gives back its memory and threads. The
child is `python -m prefmix.bench.contestants.worker SETTINGS`. The child ends with its standard
input, so that it never outlives the bench.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from prefmix.bench.contestants.job import Job
from prefmix.server.config.errors import CommandError
from prefmix.server.launch.installation import InstallationError, explained

_MARK = "@bench "
"""Prefix of the protocol's lines: libraries print to the same stream."""

_STDERR_CHARS = 2000
_END_TIMEOUT_S = 30


def environment(*, num_threads: int | None = None) -> dict[str, str]:
    """Environment of a contestant; variables that are set stay, except for `num_threads`."""
    threads = {} if num_threads is None else {"OMP_NUM_THREADS": str(num_threads)}
    return {
        # The engine computes in the contestant's process, without a second process that could lag.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_USE_AOT_COMPILE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        # Children are started with `-m`: the working directory may hold a user's torch.py.
        "PYTHONSAFEPATH": "1",
        **os.environ,
        **threads,
    }


class Worker:
    """The parent's side of one contestant."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Starts the child and returns at once.

        Args:
          settings: JSON-ready. `kind` is `module:Class`; the class is made from the settings and
            has a method `answer(request) -> answer`, both JSON-ready dictionaries.
            `num_threads`, if given, limits the threads that compute.
        """
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115, as long as the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prefmix.bench.contestants.worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=environment(num_threads=settings.get("num_threads")),
        )

    def wait_started(self) -> dict[str, Any]:
        """Waits until the contestant is loaded; returns its report on itself."""
        return self.receive()

    def seconds(self, job: Job, *, clock: str = "wall") -> float:
        """Seconds that the contestant takes for a job.

        Args: clock: "wall", or "cpu" for the processor time of its process alone.
        """
        answer = self.ask({"job": job.to_dict()})
        return float(answer["cpu_seconds" if clock == "cpu" else "seconds"])

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Sends one request and waits for its answer."""
        self.send(request)
        return self.receive()

    def send(self, request: Mapping[str, Any]) -> None:
        """Sends without waiting, so that several workers may run at once."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def receive(self) -> dict[str, Any]:
        """The next answer. Raises: CommandError with the child's last words if it ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                answer: dict[str, Any] = json.loads(line.removeprefix(_MARK))
                return answer
        raise self._ended()

    def _ended(self) -> CommandError:
        self._end()
        self._stderr.seek(0)
        last_words = self._stderr.read()[-_STDERR_CHARS:]
        self._stderr.close()
        return CommandError(f"a contestant ended early; its last words:\n{last_words}")

    @property
    def is_over(self) -> bool:
        """True once the process has ended."""
        return self._process.poll() is not None

    def close(self) -> None:
        """Ends the contestant; may be called again."""
        self._end()
        self._stderr.close()

    def _end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(settings: dict[str, Any]) -> None:
    """The child's side: builds the contestant, then answers until its input ends."""
    module, _, name = settings["kind"].partition(":")
    begin = time.perf_counter()
    contestant = getattr(importlib.import_module(module), name)(settings)
    _answer({"start_s": time.perf_counter() - begin, "num_threads": _num_threads()})
    for line in sys.stdin:
        _answer(contestant.answer(json.loads(line)))


def _num_threads() -> int:
    import torch

    return torch.get_num_threads()


def _answer(answer: Mapping[str, Any]) -> None:
    print(_MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    try:
        with explained():
            main(json.loads(sys.argv[1]))
    except InstallationError as error:
        sys.exit(str(error))
