"""Runs vLLM's own `serve` command, and says when the server is ready."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Self

from prefmix.mixing import start_stages
from prefmix.mixing.spec import MixtureSpec
from prefmix.server import failed_engine
from prefmix.server.admin.two_phase_commit import sockets_in
from prefmix.server.auth.api_keys import api_keys
from prefmix.server.config.live_settings import LIVE_ATTRIBUTE, LiveSettings
from prefmix.server.engine_check import checked_as, slots_as
from prefmix.server.launch.cpu_dtype import REASON_ATTRIBUTE
from prefmix.server.launch.ready_probe import Address, ReadyProbe
from prefmix.server.launch.start_signals import StartSignals
from prefmix.server.launch.terminal.banner import (
    console_address,
    first_request,
    open_surfaces,
    ready_table,
)
from prefmix.server.launch.terminal.startup_log import StartupLog
from prefmix.server.launch.terminal.unwritten_output import discard_unwritten_output
from prefmix.weights.store.profiles import ProfileSet

_REAPED_S = 1.0
"""Time for a process that was killed to be gone."""


_UNNOTICED_S = 20.0
"""A server that vLLM has not ended so long after the end of one of its processes stays up."""

_ENDED_AS_ASKED = (0, -signal.SIGTERM, -signal.SIGINT)
"""Exit codes of processes that vLLM has ended."""


class UncleanEndError(Exception):
    """A process of the server that failed while the server ended, or had to be killed."""


def run_vllm(
    args: Namespace,
    spec: MixtureSpec,
    profiles: ProfileSet,
    *,
    log: StartupLog,
    signals: StartSignals,
) -> None:
    """Runs vLLM's server until a signal ends it; prints the ready table once it answers.

    Args:
      args: vLLM's arguments, with the settings of every API process left on them.
      spec: the mixture.
      profiles: the profiles to start with.
      log: shows everything once the server is ready.
      signals: leaves Ctrl-C and SIGTERM to vLLM once the server is ready.
    Raises: RuntimeError if the server ends before it answers, or without being asked to;
      UncleanEndError if one of its processes failed while it ended, or had to be killed.
    """
    # vLLM's console script is not used: its CPU wheel ships one that cannot run.
    from vllm.entrypoints.cli.serve import ServeSubcommand

    address = Address(
        host=args.host, port=args.port, tls=bool(args.ssl_certfile), unix_socket=args.uds
    )
    failures: list[RuntimeError] = []
    processes: list[BaseProcess] = []

    def ready() -> None:
        log.release()
        processes.extend(multiprocessing.active_children())
        watch.start(processes)
        signals.ready()
        folder = getattr(args, LIVE_ATTRIBUTE).folder
        table = ready_table(
            spec,
            profiles,
            url=address.url,
            model_name=args.served_model_name[0],
            surfaces=open_surfaces(args),
            request=first_request(args, url=address.local_url),
            console=console_address(args, url=address.local_url),
            dtype=getattr(args, REASON_ATTRIBUTE, None),
            check=checked_as(folder),
            slots=slots_as(folder),
        )
        try:
            print(table, flush=True)
        except OSError as error:
            discard_unwritten_output()
            log.say(f"the server is ready; its table cannot be printed: {error.strerror}")

    def fail(error: RuntimeError) -> None:
        failures.append(error)
        signals.ready()
        os.kill(os.getpid(), signal.SIGTERM)

    def miss(process: BaseProcess) -> None:
        if not signals.asked_to_end:
            name = f"{process.name} (process {process.pid})"
            fail(RuntimeError(f"{name} has ended; its last words are above, if it had any"))

    if args.headless:
        _release_when_engines_run(args, log, signals, processes)
        _serve(ServeSubcommand.cmd, args)
        if not signals.asked_to_end:
            raise RuntimeError("an engine of this machine has ended; its last words are above")
        check_ended(processes, waited_s=signals.seconds_since_asked, limit_s=args.shutdown_timeout)
        return
    live: LiveSettings = getattr(args, LIVE_ATTRIBUTE)

    def are_all_up() -> bool:
        num_processes = args.api_server_count or 1  # vLLM sets it where no flag does
        return len(sockets_in(live.folder)) == num_processes

    watch = _UnnoticedEnds(miss)
    probe = ReadyProbe(
        address,
        # A store may have been changed while the engine started.
        sha256=None if live.store is not None else profiles.sha256,
        key=next(iter(api_keys(args.api_key)), None),
        on_ready=ready,
        on_failure=fail,
        are_all_up=are_all_up,
    )
    with watch, probe:
        _serve(ServeSubcommand.cmd, args)
    if failures:
        raise failures[0]
    if not probe.answered:
        raise RuntimeError("vLLM ended before it answered")
    if not signals.asked_to_end:
        # vLLM ends as if it had been asked to.
        raise RuntimeError(failed_engine.DIED)
    check_ended(processes, waited_s=signals.seconds_since_asked, limit_s=args.shutdown_timeout)


def _release_when_engines_run(
    args: Namespace, log: StartupLog, signals: StartSignals, processes: list[BaseProcess]
) -> None:
    """Ends the start of engines alone once they run, or at once if they do not tell.

    Nobody asks them here: the API processes, which check them, run on another machine.

    Args: processes: gets the processes of the engines that tell.
    """

    def ready() -> None:
        log.release()
        processes.extend(multiprocessing.active_children())
        signals.ready()
        # Past the pipe: the thread that calls this is the one that reads it.
        log.say("the engines of this machine run; clients ask the first machine")

    # Prefmix's scheduler tells it (prefmix.mixing.engine.scheduler).
    others = ("scheduler_cls", "kv_transfer_config", "enable_expert_parallel", "node_rank")
    is_told = not any(getattr(args, name, None) for name in others)
    times = getattr(args, "data_parallel_size_local", None) or 1
    if not (is_told and log.when_told(start_stages.ENGINE_RUNS, times, ready)):
        log.release()
        signals.ready()


def _serve(command: Callable[[Namespace], None], args: Namespace) -> None:
    try:
        command(args)
    except SystemExit as end:  # how vLLM ends several API processes, and engines alone
        if end.code:
            raise RuntimeError(f"vLLM ended with exit code {end.code}") from end


class _UnnoticedEnds:
    """A thread that tells the end of a process after which vLLM, unasked, lets the server stay up.

    vLLM 0.32 with several API processes takes exit code 0 of one of them, or of an engine, for an
    end that was asked for. The thread does not ask for exit codes, which only one thread can get.
    """

    def __init__(self, on_end: Callable[[BaseProcess], None]) -> None:
        """Args: on_end: called in the thread, at most once."""
        self._on_end = on_end
        self._over, self._end = connection.Pipe(duplex=False)
        self._thread: threading.Thread | None = None

    def start(self, processes: Iterable[BaseProcess]) -> None:
        """Begins to wait for the end of one of these children of this process."""
        self._thread = threading.Thread(target=self._run, args=(list(processes),), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        """Makes the end of the block the server's."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stops waiting."""
        self._end.send_bytes(b".")
        if self._thread is not None:
            self._thread.join(_REAPED_S)

    def _run(self, processes: list[BaseProcess]) -> None:
        by_sentinel = {process.sentinel: process for process in processes}
        first = connection.wait([self._over, *by_sentinel])[0]
        if isinstance(first, int) and not self._over.poll(_UNNOTICED_S):
            self._on_end(by_sentinel[first])


def check_ended(processes: Iterable[BaseProcess], *, waited_s: float, limit_s: float) -> None:
    """Checks that processes have ended by themselves, now that vLLM has ended.

    Args:
      processes: the children of this process that served.
      waited_s: seconds since they were asked to end.
      limit_s: seconds after which vLLM kills them.
    Raises: UncleanEndError naming those that failed, and those that vLLM killed or left running.
    """
    deadline = time.monotonic() + _REAPED_S
    hung: list[str] = []
    failed: list[str] = []
    for process in processes:
        try:
            name = f"{process.name} (process {process.pid})"
            process.join(max(0.0, deadline - time.monotonic()))
            code = process.exitcode
        except ValueError:  # closed, which only a process that has ended can be
            continue
        if code in (None, -signal.SIGKILL) and waited_s >= limit_s:
            hung.append(name)
        elif code not in _ENDED_AS_ASKED:
            failed.append(f"{name} {_how_it_ended(code)}")
    sentences = []
    if failed:
        sentences.append(
            f"{' and '.join(failed)} while the server was ending; requests under way were lost"
        )
    if hung:
        sentences.append(
            f"{' and '.join(hung)} did not end within {waited_s:.0f} s of being asked to, and was "
            "killed; it was stopped, or a step of the engine hangs"
        )
    if sentences:
        raise UncleanEndError("; ".join(sentences))


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "ran on"
    if code > 0:
        return f"failed with exit code {code}"
    try:
        return f"was killed ({signal.Signals(-code).name})"
    except ValueError:  # a real-time signal
        return f"was killed (signal {-code})"
