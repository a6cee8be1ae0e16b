"""The `prefmix` command, which runs a subcommand and reports its errors in one sentence.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 ended by Ctrl-C, 141 by a closed
pipe, 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import importlib.metadata
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, cast

from prefmix.server.cli.standard_streams import discard_unwritten_output, prepare_streams
from prefmix.server.config.errors import CommandError
from prefmix.server.launch.engine_flags import is_engine_flag
from prefmix.server.launch.installation import InstallationError, explained


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

    def load(self) -> CommandModule:
        """Imports the module."""
        return cast(CommandModule, importlib.import_module(self.module))


COMMANDS = (
    Command("serve", "prefmix.server.cli.serve", "serve a mixture of policies over HTTP"),
    Command("fit", "prefmix.server.cli.fit", "fit the weights of a profile, with a certificate"),
    Command(
        "weights",
        "prefmix.server.cli.weights",
        "show and change the profiles that are served",
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
)

_DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
}
"""A disk that is full, broken or forbidden: a traceback explains none of these."""


class OneSentenceParser(argparse.ArgumentParser):
    """Raises CommandError instead of printing usage, and OSError if it cannot print its help."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(message, exit_code=2)

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `prefmix` command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    prepare_streams()
    try:
        with explained():
            code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except InstallationError as error:
        print(f"prefmix: error: {error}", file=sys.stderr)
        return 1
    except CommandError as error:
        print(f"prefmix: error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader, such as `head`, has read enough
        discard_unwritten_output()
        return 141
    except OSError as error:
        sentence = _fault_of_the_machine(error)
        if sentence is None:
            raise
        discard_unwritten_output()
        print(f"prefmix: error: {sentence}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _fault_of_the_machine(error: OSError) -> str | None:
    """The sentence for an error that only the user of the machine can mend, else None."""
    if error.errno in _DISK_ERRORS:
        what = error.filename or "the output or a file cannot be written"
        return f"{what}: {error.strerror}"
    if error.errno == errno.ENOENT and error.filename is None:  # of os.getcwd()
        return "the working directory no longer exists; change to another one"
    return None


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "help":  # as git's: `prefmix help serve` is `prefmix serve --help`
        return _dispatch([*argv[1:2], "--help"])
    if argv[0] in ("-V", "--version"):
        print(f"prefmix {importlib.metadata.version('prefmix')}")
        return 0
    command = next((command for command in COMMANDS if command.name == argv[0]), None)
    if command is None:
        names = ", ".join(command.name for command in COMMANDS)
        raise CommandError(
            f"unknown command {argv[0]!r}{_suggestion(argv[0], [c.name for c in COMMANDS])}; "
            f"the commands are: {names}",
            exit_code=2,
        )
    return _run(command, argv[1:])


def parser_of(command: Command) -> OneSentenceParser:
    """The parser of a subcommand's flags."""
    parser = OneSentenceParser(
        prog=f"prefmix {command.name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        allow_abbrev=False,
    )
    command.load().add_arguments(parser)
    return parser


def _run(command: Command, argv: list[str]) -> int:
    own, passthrough = split_passthrough(argv)
    module = command.load()
    parser = parser_of(command)
    args, unknown = parser.parse_known_args(own)
    if unknown:
        chosen = _chosen(parser, args)
        flags = [flag for action in chosen._actions for flag in action.option_strings]
        what = "flag" if unknown[0].startswith("-") else "argument"
        name = re.split("=", unknown[0], maxsplit=1)[0]
        if command.takes_engine_flags and is_engine_flag(name):
            raise CommandError(
                f"{name!r} is a flag of vLLM; vLLM's flags go after '--', behind all others: "
                f"prefmix {command.name} ... -- {' '.join(unknown[:2])}",
                exit_code=2,
            )
        hint = "vLLM's own flags go after '--', and " if command.takes_engine_flags else ""
        raise CommandError(
            f"unknown {what} {name!r}{_suggestion(name, flags)}; {hint}"
            f"'{chosen.prog} --help' lists the others",
            exit_code=2,
        )
    return module.run(args, passthrough)


def _chosen(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser of the innermost subcommand that was given, such as `prefmix train dpo`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return _chosen(action.choices[getattr(args, action.dest)], args)
    return parser


def split_passthrough(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the command line at the first `--`, which itself is dropped."""
    argv = list(argv)
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _suggestion(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _help() -> str:
    lines = [f"  {command.name:<8} {command.summary}" for command in COMMANDS]
    return "\n".join(
        [
            "usage: prefmix COMMAND ...",
            "",
            "Inference-time policy mixing: K language-model policies in one vLLM engine.",
            "",
            "commands:",
            *lines,
            "",
            "'prefmix help COMMAND' explains a command; 'prefmix --version' prints the version.",
        ]
    )
