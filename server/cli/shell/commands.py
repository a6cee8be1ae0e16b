"""The table of the subcommands of `prefmix`, and their parsers."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, cast

from prefmix.server.cli.shell.manual import add_manual
from prefmix.server.config.errors import CommandError


class CommandModule(Protocol):
    """The functions of a subcommand's module."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's flags."""

    def run(self, args: argparse.Namespace, passthrough: Sequence[str]) -> int:
        """Runs the subcommand. Args: passthrough: the words after `--`. Returns: the exit code."""


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand, whose module is imported only when it runs."""

    name: str
    module: str
    summary: str
    takes_engine_flags: bool = True
    """True if the command passes the words after `--` to vLLM."""
    handles_signals: bool = False
    """True if the command has handlers of its own for SIGTERM and SIGHUP."""

    def load(self) -> CommandModule:
        """Imports the module."""
        return cast(CommandModule, importlib.import_module(self.module))


COMMANDS = (
    Command(
        "serve",
        "prefmix.server.cli.serve",
        "serve a mixture of policies over HTTP",
        handles_signals=True,
    ),
    Command("fit", "prefmix.server.cli.fit", "fit the weights of a profile, with a certificate"),
    Command(
        "weights",
        "prefmix.server.cli.weights",
        "show and change the profiles that are served",
        takes_engine_flags=False,
    ),
    Command(
        "policies",
        "prefmix.server.cli.policies.command",
        "list, add and remove the policies of a running server",
        takes_engine_flags=False,
    ),
    Command(
        "train",
        "prefmix.server.cli.train",
        "train a policy for one objective from preference pairs",
        takes_engine_flags=False,
    ),
    Command(
        "eval",
        "prefmix.server.cli.eval",
        "measure the rewards of policies, profiles, mixtures and parameter averages",
    ),
    Command(
        "average",
        "prefmix.server.cli.averaging.average",
        "write the parameter average of full checkpoints as one checkpoint",
        takes_engine_flags=False,
    ),
    Command(
        "export",
        "prefmix.server.cli.averaging.export",
        "write the average of adapters as one adapter or merged checkpoint",
        takes_engine_flags=False,
    ),
    Command("bench", "prefmix.bench.command", "measure the cost of mixing beside its alternatives"),
    Command(
        "doctor",
        "prefmix.server.cli.doctor.command",
        "check this machine and a configuration, and start nothing",
    ),
    Command(
        "completion",
        "prefmix.server.cli.shell.completion",
        "print the script that completes words in bash, zsh or fish",
        takes_engine_flags=False,
    ),
)


class OneSentenceParser(argparse.ArgumentParser):
    """Raises CommandError instead of printing usage, and OSError if it cannot print its help."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            actions = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
            lists = [f"; {a.metavar} is one of: {', '.join(a.choices)}" for a in actions]
            message += "".join(lists) or f"; '{self.prog} --help' explains them"
        raise CommandError(message, exit_code=2)

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file, flush=True)


def parser_of(command: Command) -> OneSentenceParser:
    """The parser of a subcommand's flags."""
    parser = OneSentenceParser(
        prog=f"prefmix {command.name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        allow_abbrev=False,
    )
    command.load().add_arguments(parser)
    add_manual(command.name, parser)
    return parser


def split_passthrough(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the command line at the first `--`, which itself is dropped."""
    argv = list(argv)
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]
