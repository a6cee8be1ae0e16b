"""SIGTERM and SIGHUP end a command as Ctrl-C does, with exit codes of their own."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from prefmix.server.cli import main as cli
from prefmix.server.cli.shell.commands import Command
from prefmix.server.cli.shell.signals import Terminated, ended_as_by_ctrl_c


class Job(SimpleNamespace):
    """A command that is sent a signal in the middle of its work."""

    number: signal.Signals
    cleaned: bool = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.description = "A job."

    def run(self, args: argparse.Namespace, passthrough: Sequence[str]) -> int:
        try:
            signal.raise_signal(self.number)
        except Exception:
            return 1  # someone's code that catches too much
        finally:
            self.cleaned = True
        return 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_command_cleans_up_and_has_the_signals_exit_code(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(number=number)
    monkeypatch.setattr(Command, "load", lambda self: job)
    monkeypatch.setattr(cli, "parser_of", lambda command: argparse.ArgumentParser())
    assert cli.main(["export"]) == code
    assert job.cleaned


def test_the_second_signal_is_not_caught() -> None:
    with ended_as_by_ctrl_c():
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_handlers_of_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup, and in a thread, where no handler can be set."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_as_by_ctrl_c():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    found: list[object] = []

    def work() -> None:
        with ended_as_by_ctrl_c():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
