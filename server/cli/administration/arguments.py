"""Arguments of the commands that change a store file or a running server, and their outcome."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefmix.mixing.name_list import listed
from prefmix.server.cli.administration.targets import Precondition, Receipt

TOKEN_VARIABLE = "PREFMIX_ADMIN_TOKEN"

_MAX_TOKEN_CHARS = 4096


class UsageError(ValueError):
    """A command line with too few or too many words."""


def add_action(
    commands: Any, name: str, action: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    """Adds a subcommand, which `run_action` of the parsed arguments runs."""
    sub: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        allow_abbrev=False,
    )
    sub.set_defaults(run_action=action)
    return sub


def add_server(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name a running server and its token."""
    add = parser.add_argument
    add("--url", help="a running server, such as http://127.0.0.1:8000")
    add("--token-file", type=Path, metavar="FILE", help="a file that holds the admin token")
    add("--token", help=f"the admin token; better in a file or in {TOKEN_VARIABLE}")


def add_precondition(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of actions that change something."""
    add = parser.add_argument
    add(
        "--if-match",
        metavar="VERSION",
        help="refuse unless this version or sha256 is still in force",
    )
    add("--dry-run", action="store_true", help="check everything and change nothing")


def admin_token(args: argparse.Namespace) -> str:
    """The admin token, from a flag, a file or the environment. Raises: UsageError."""
    if args.token is not None and args.token_file is not None:
        raise UsageError("give either --token or --token-file")
    token = args.token or os.environ.get(TOKEN_VARIABLE, "")
    if args.token_file is not None:
        try:
            with args.token_file.open(encoding="utf-8") as file:
                token = file.read(_MAX_TOKEN_CHARS + 1)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise UsageError(f"cannot read the token file {args.token_file}: {reason}") from None
    token = token.strip()
    if not token:
        raise UsageError(
            f"--url needs the server's admin token: set {TOKEN_VARIABLE} or give --token-file FILE"
        )
    if len(token) > _MAX_TOKEN_CHARS or not (token.isascii() and token.isprintable()):
        raise UsageError(
            "the admin token has characters, or a length, that no HTTP header can carry"
        )
    return token


def precondition(args: argparse.Namespace) -> Precondition:
    """The precondition that the flags of `add_precondition` give."""
    return Precondition(expected=args.if_match, dry_run=args.dry_run)


def report(receipt: Receipt, args: argparse.Namespace) -> int:
    """Prints what a change has done, and returns the exit code."""
    digest = f"sha256 {receipt.sha256[:12]}"
    if not receipt.is_changed:
        print(f"unchanged: version {receipt.version}, {digest}")
    elif args.dry_run:
        print(f"valid: would become version {receipt.version}, {digest}; nothing was changed")
    elif receipt.previous_version is None:
        print(f"created: version {receipt.version}, {digest}")
    else:
        print(f"version {receipt.previous_version} -> {receipt.version}, {digest}")
    if receipt.set_aside is not None:
        verb = "would be" if args.dry_run else "is"
        print(f"the store file could not be read; what it held {verb} kept as {receipt.set_aside}")
    for name, mixing in receipt.lost_mixings.items():
        verb = "would now leave" if args.dry_run else "now leaves"
        print(
            f"profile {name!r} mixed {mixing}; it {verb} the way to mix to the server\n"
            f"('prefmix weights set {name} ... --mixing {mixing}' sets it)"
        )
    for name, absent in receipt.dormant.items():
        print(f"profile {name!r} is dormant: it waits for {listed(absent)}")
    return 0


def fail(error: ValueError, *, code: int) -> int:
    """Prints an error, and returns the exit code."""
    print(f"prefmix: error: {error}", file=sys.stderr)
    return code
