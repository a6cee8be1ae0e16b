"""The `prefmix` command, which runs a subcommand and reports its errors in one sentence.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 ended by Ctrl-C, 141 by a closed
pipe, 143 by SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib.metadata
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from prefmix.server.cli.shell.commands import COMMANDS, Command, parser_of, split_passthrough
from prefmix.server.cli.shell.pager import paged
from prefmix.server.cli.shell.signals import Terminated, ended_as_by_ctrl_c
from prefmix.server.cli.shell.standard_streams import prepare_streams
from prefmix.server.config.errors import CommandError
from prefmix.server.launch.engine_flags import is_engine_flag
from prefmix.server.launch.installation import InstallationError, explained
from prefmix.server.launch.terminal.unwritten_output import discard_unwritten_output

_DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
}
"""A disk that is full, broken or forbidden: a traceback explains none of these."""


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
    except Terminated as end:
        return 128 + end.number
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
    if argv[0] == "help":  # as git's: `prefmix help serve` is `prefmix serve --help`, in a pager
        with paged():
            return _dispatch([*argv[1:], "--help"])
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
                f"prefmix {command.name} ... -- {_with_value(unknown[0], own)}",
                exit_code=2,
            )
        hint = "vLLM's own flags go after '--', and " if command.takes_engine_flags else ""
        raise CommandError(
            f"unknown {what} {name!r}{_suggestion(name, flags)}; {hint}"
            f"'{chosen.prog} --help' lists the others",
            exit_code=2,
        )
    with nullcontext() if command.handles_signals else ended_as_by_ctrl_c():
        return module.run(args, passthrough)


def _with_value(flag: str, argv: Sequence[str]) -> str:
    """A flag of vLLM with the word behind it, which may have been taken for the configuration."""
    following = argv[argv.index(flag) + 1 :][:1]
    if "=" in flag or not following or following[0].startswith("-"):
        return flag
    return flag if following[0].endswith((".yaml", ".yml")) else f"{flag} {following[0]}"


def _chosen(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser of the innermost subcommand that was given, such as `prefmix train dpo`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return _chosen(action.choices[getattr(args, action.dest)], args)
    return parser


def _suggestion(word: str, known: Sequence[str]) -> str:
    bare = {each.lstrip("-"): each for each in known}  # two dashes in common are no likeness
    close = difflib.get_close_matches(word.lstrip("-"), bare, n=1)
    return f" (did you mean {bare[close[0]]!r}?)" if close else ""


def _help() -> str:
    width = max(len(command.name) for command in COMMANDS)
    lines = [f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS]
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
