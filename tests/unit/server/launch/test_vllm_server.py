"""The start and end of vLLM's server, with a server of the test in its place."""

from __future__ import annotations

import http.server
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.config.live_settings import LIVE_ATTRIBUTE, LiveSettings
from prefmix.server.console.settings import CONSOLE_ATTRIBUTE, ConsoleSettings
from prefmix.server.launch import vllm_server
from prefmix.server.launch.start_signals import StartSignals
from prefmix.server.launch.terminal.startup_log import StartupLog
from prefmix.server.launch.vllm_server import UncleanEndError, check_ended, run_vllm
from prefmix.weights.store.profiles import build_profile_set

SPEC = MixtureSpec(policies=(Policy(name="a", model="/none/a"), Policy(name="b", model="/none/b")))
PROFILES = build_profile_set({}, SPEC)


class Mixture(http.server.BaseHTTPRequestHandler):
    """Answers GET /v1/mixture as prefmix does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"sha256": PROFILES.sha256}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    with http.server.HTTPServer(("127.0.0.1", 0), Mixture) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> StartSignals:
    monkeypatch.delenv("PREFMIX_ADMIN_TOKEN", raising=False)
    return StartSignals(on_signal=lambda: None, before_exit=lambda: None)


class Run(Protocol):
    def __call__(
        self,
        command: Callable[[Namespace], None],
        port: int,
        *,
        headless: bool = False,
        log: StartupLog | None = None,
        is_up: bool = True,
        **others: object,
    ) -> None: ...


@pytest.fixture
def run(signals: StartSignals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a function in place of vLLM's `serve` command, for a server on a port."""

    def run(
        command: Callable[[Namespace], None],
        port: int,
        *,
        headless: bool = False,
        log: StartupLog | None = None,
        is_up: bool = True,
        **others: object,
    ) -> None:
        module = types.ModuleType("vllm.entrypoints.cli.serve")
        module.ServeSubcommand = types.SimpleNamespace(cmd=command)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        args = Namespace(
            host="127.0.0.1",
            port=port,
            ssl_certfile=None,
            uds=None,
            api_key=None,
            served_model_name=["test"],
            disable_fastapi_docs=True,
            headless=headless,
            api_server_count=None,
            shutdown_timeout=40,
        )
        if is_up:
            (tmp_path / "1.sock").touch()
        setattr(args, LIVE_ATTRIBUTE, LiveSettings(folder=tmp_path))
        console = ConsoleSettings(is_on=True, has_admin=False)
        setattr(args, CONSOLE_ATTRIBUTE, console)
        for name, value in others.items():
            setattr(args, name, value)
        log = StartupLog(enabled=False) if log is None else log
        run_vllm(args, SPEC, PROFILES, log=log, signals=signals)

    return run


def until_ready(signals: StartSignals) -> None:
    deadline = time.monotonic() + 30
    while not signals.is_ready:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_end_before_the_first_answer_is_an_error(run: Run) -> None:
    with pytest.raises(RuntimeError, match="vLLM ended before it answered"):
        run(lambda args: None, 9)


def test_engines_alone_are_not_asked_for_an_answer(run: Run, signals: StartSignals) -> None:
    """vLLM ends them by SystemExit; their signals are vLLM's from the start."""

    def command(args: Namespace) -> None:
        assert signals.is_ready
        with signals:
            signal.signal(signal.SIGTERM, lambda *_: None)
            os.kill(os.getpid(), signal.SIGTERM)
        raise SystemExit

    with pytest.raises(RuntimeError, match="an engine of this machine has ended"):
        run(lambda args: None, 9, headless=True)
    run(command, 9, headless=True)
    with pytest.raises(RuntimeError, match="vLLM ended with exit code 3"):
        run(lambda args: sys.exit(3), 9, headless=True)


@pytest.mark.parametrize("others", [{}, {"scheduler_cls": "own.Scheduler"}, {"node_rank": 1}])
def test_engines_alone_start_in_stages_until_they_run(
    run: Run, signals: StartSignals, others: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    """Until then tracebacks are held back; engines that cannot tell have no such start."""
    log = StartupLog(enabled=True)

    def announce() -> None:
        os.write(2, b"prefmix-stage: 940 connecting the engine\n")

    def command(args: Namespace) -> None:
        if not others:
            announce()
            time.sleep(0.05)
            assert not signals.is_ready, "the other engine does not run yet"
            announce()
        until_ready(signals)
        with signals:
            signal.signal(signal.SIGTERM, lambda *_: None)
            os.kill(os.getpid(), signal.SIGTERM)

    with log:
        run(command, 9, headless=True, log=log, data_parallel_size_local=2, **others)
    said = capfd.readouterr().err
    assert ("prefmix: the engines of this machine run" in said) == (not others)


def test_an_exit_code_of_vllm_is_an_error(run: Run) -> None:
    def command(args: Namespace) -> None:
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="vLLM ended with exit code 3"):
        run(command, 9)


def test_an_end_that_nobody_asked_for_is_an_error(
    run: Run, server: http.server.HTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(args: Namespace) -> None:
        shown = ""
        deadline = time.monotonic() + 30
        while "inference without API key, metrics, health, console" not in shown:
            assert time.monotonic() < deadline, shown
            time.sleep(0.01)
            shown += capsys.readouterr().out

    with pytest.raises(RuntimeError, match="the engine's process died"):
        run(command, server.server_port)


def test_a_process_that_had_to_be_killed_is_an_error() -> None:
    """One ends by itself, one ignores the request and is killed, as vLLM does at last."""
    context = multiprocessing.get_context("fork")
    ended = context.Process(target=time.sleep, args=(0,), name="APIServer_0")
    hung = context.Process(target=time.sleep, args=(60,), name="EngineCore_DP0")
    for process in (ended, hung):
        process.start()
    ended.join()
    check_ended([ended], waited_s=3.0, limit_s=10)
    hung.kill()
    with pytest.raises(UncleanEndError) as caught:
        check_ended([ended, hung], waited_s=10.4, limit_s=10)
    message = str(caught.value)
    assert message.startswith(f"EngineCore_DP0 (process {hung.pid}) did not end within 10 s")
    with pytest.raises(UncleanEndError) as caught:
        check_ended([ended, hung], waited_s=3.0, limit_s=10)
    assert str(caught.value) == (
        f"EngineCore_DP0 (process {hung.pid}) was killed (SIGKILL) while the server was ending; "
        "requests under way were lost"
    )
    ended.close()
    hung.close()
    check_ended([ended], waited_s=3.0, limit_s=10)


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (0, None),
        (-signal.SIGTERM, None),
        (-signal.SIGINT, None),
        (1, "failed with exit code 1"),
        (-signal.SIGSEGV, "was killed (SIGSEGV)"),
        (-40, "was killed (signal 40)"),
    ],
)
@pytest.mark.parametrize("headless", [False, True])
def test_a_process_that_fails_while_the_server_ends_is_an_error(
    run: Run,
    server: http.server.HTTPServer,
    signals: StartSignals,
    code: int,
    how: str | None,
    headless: bool,
) -> None:
    """vLLM itself ends as if all was well."""
    context = multiprocessing.get_context("fork")
    asked = context.Event()

    def end_when_asked() -> None:
        asked.wait(60)
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        sys.exit(code)

    engine = context.Process(target=end_when_asked, name="EngineCore")
    engine.start()  # before the first answer, after which it is looked for

    def command(args: Namespace) -> None:
        if headless:
            os.write(2, b"prefmix-stage: 940 connecting the engine\n")
        until_ready(signals)
        signals._asked_at = time.monotonic()
        asked.set()
        engine.join()
        sys.exit(0)

    with StartupLog(enabled=headless) as log:
        if how is None:
            run(command, server.server_port, headless=headless, log=log)
            return
        with pytest.raises(UncleanEndError, match=r"EngineCore \(process \d+\)") as caught:
            run(command, server.server_port, headless=headless, log=log)
    assert f"{how} while the server was ending" in str(caught.value)


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_process_whose_end_vllm_does_not_notice_ends_the_server(
    run: Run,
    server: http.server.HTTPServer,
    signals: StartSignals,
    monkeypatch: pytest.MonkeyPatch,
    is_asked: bool,
) -> None:
    """With several API processes vLLM waits on, and nobody answers."""
    monkeypatch.setattr(vllm_server, "_UNNOTICED_S", 0.1)
    context = multiprocessing.get_context("fork")
    asked, ends = context.Event(), threading.Event()
    engine = context.Process(target=asked.wait, args=(60,), name="EngineCore")
    engine.start()  # before the first answer, after which it is looked for

    def command(args: Namespace) -> None:
        signal.signal(signal.SIGTERM, lambda *_: ends.set())
        until_ready(signals)
        if is_asked:
            signals._asked_at = time.monotonic()
        asked.set()
        assert ends.wait(1 if is_asked else 60) != is_asked
        engine.join()

    with signals:
        if is_asked:
            run(command, server.server_port)
            return
        with pytest.raises(RuntimeError, match=r"EngineCore \(process \d+\) has ended; its last"):
            run(command, server.server_port)


@pytest.mark.parametrize("num_processes", [None, 2])
def test_a_server_is_ready_once_all_its_api_processes_are_up(
    run: Run, server: http.server.HTTPServer, signals: StartSignals, num_processes: int | None
) -> None:
    """Before that another server may answer, or one of two; changes of weights need both."""

    def command(args: Namespace) -> None:
        args.api_server_count = num_processes  # as vLLM sets it, by the number of engines
        folder = getattr(args, LIVE_ATTRIBUTE).folder
        for number in range(num_processes or 1):
            time.sleep(0.5)
            assert not signals.is_ready
            (folder / f"{number}.sock").touch()
        until_ready(signals)
        signals._asked_at = time.monotonic()

    run(command, server.server_port, is_up=False)


def test_a_table_that_cannot_be_printed_is_said_once_and_the_server_serves_on(
    run: Run,
    server: http.server.HTTPServer,
    signals: StartSignals,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    said = ""

    def command(args: Namespace) -> None:
        nonlocal said
        deadline = time.monotonic() + 30
        while "cannot be printed" not in said:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            said += capfd.readouterr().err
        time.sleep(0.2)
        signals._asked_at = time.monotonic()

    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        run(command, server.server_port)
    said += capfd.readouterr().err
    line = "prefmix: the server is ready; its table cannot be printed: No space left on device\n"
    assert said == line


def test_an_end_that_was_asked_for_is_none(
    run: Run, server: http.server.HTTPServer, signals: StartSignals
) -> None:
    def command(args: Namespace) -> None:
        until_ready(signals)
        signals._asked_at = time.monotonic()
        raise SystemExit(0)

    run(command, server.server_port)
