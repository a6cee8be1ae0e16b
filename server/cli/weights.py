"""`prefmix weights`: shows and changes the profiles of a store file or of a running server.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefmix.mixing.name_list import listed
from prefmix.mixing.ways_to_mix import MIXINGS
from prefmix.server.cli.administration.arguments import (
    TOKEN_VARIABLE,
    UsageError,
    add_action,
    add_precondition,
    add_server,
    admin_token,
    fail,
    precondition,
    report,
)
from prefmix.server.cli.administration.server_target import ServerTarget
from prefmix.server.cli.administration.targets import (
    FileTarget,
    Precondition,
    Target,
    read_profiles,
)
from prefmix.server.cli.output_places import check_file
from prefmix.weights.store.format import document
from prefmix.weights.store.profiles import ProfileSet
from prefmix.weights.store.text_tables import difference_table, history_table, profile_table

EPILOG = f"""\
Every action works on a store file (--weights-store PATH) or on a running server (--url URL).
A server needs its admin token, from --token-file FILE, from the environment variable
{TOKEN_VARIABLE}, or from --token TOKEN, which other users of this machine can see.

Example: prefmix weights set careful helpful=1 harmless=3 --weights-store weights.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands of `prefmix weights` and their flags."""
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def command(
        name: str, action: Callable[[argparse.Namespace], int], summary: str, *, changes: bool
    ) -> argparse.ArgumentParser:
        sub = add_action(commands, name, action, summary)
        _add_target(sub)
        if changes:
            add_precondition(sub)
        return sub

    sub = command("show", _show, "print the profiles in force", changes=False)
    sub.add_argument("--json", action="store_true", help="print JSON, as the store has it")
    sub = command("set", _set, "add or replace a profile", changes=True)
    sub.add_argument("name", metavar="PROFILE")
    sub.add_argument(
        "pairs", metavar="POLICY=NUMBER", nargs="+", help="ratios, which are divided by their sum"
    )
    sub.add_argument(
        "--mixing", choices=MIXINGS, help="the profile's way to mix; default: the server's"
    )
    sub = command("delete", _delete, "remove a profile", changes=True)
    sub.add_argument("name", metavar="PROFILE")
    sub = command(
        "default", _default, "choose the profile of requests that name none", changes=True
    )
    sub.add_argument("name", metavar="PROFILE")
    sub = command("history", _history, "list the versions that are kept", changes=False)
    sub.add_argument(
        "--plot", metavar="PNG", type=Path, help="also draw the default's weights over the versions"
    )
    sub.add_argument("--profile", metavar="PROFILE", help="the profile that --plot draws instead")
    sub = command("rollback", _rollback, "return to an earlier version's content", changes=True)
    sub.add_argument(
        "version",
        metavar="VERSION",
        nargs="?",
        type=int,
        help="default: the version before the present one",
    )
    sub.add_argument(
        "--drain",
        action="store_true",
        help="with --url: replace policies in their own slots if no other is free; new requests "
        "for them get 503 until those under way have ended, which may take a minute",
    )
    sub = command("diff", _diff, "show what changed between two versions", changes=False)
    sub.add_argument(
        "old", metavar="OLD", nargs="?", type=int, help="default: the version before NEW"
    )
    sub.add_argument("new", metavar="NEW", nargs="?", type=int, help="default: the present version")
    sub = command("validate", _validate, "check a file in the store's format", changes=False)
    sub.add_argument("file", metavar="FILE", type=Path)
    sub = command(
        "apply",
        _apply,
        "merge the profiles of a store file, such as the output of 'prefmix fit'",
        changes=True,
    )
    sub.add_argument("file", metavar="FILE", type=Path)
    sub.add_argument(
        "--replace",
        action="store_true",
        help="replace all profiles and the default by those of the file",
    )
    sub.add_argument(
        "--default", action="store_true", help="make the default of the file the default here, too"
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--weights-store", type=Path, metavar="PATH", help="the store file")
    add_server(parser)


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Runs one action; returns the exit code."""
    try:
        if passthrough:
            raise UsageError("prefmix weights takes nothing after '--'")
        code: int = args.run_action(args)
    except UsageError as error:
        return fail(error, code=2)
    except ValueError as error:  # a refusal by the store, the profiles or the server
        return fail(error, code=1)
    return code


def _target(args: argparse.Namespace) -> Target:
    if (args.weights_store is None) == (args.url is None):
        raise UsageError("give either --weights-store PATH or --url URL")
    if args.weights_store is not None:
        if args.token is not None or args.token_file is not None:
            raise UsageError("a token belongs to --url; a store file needs none")
        return FileTarget(args.weights_store)
    return ServerTarget(args.url, admin_token(args))


def _show(args: argparse.Namespace) -> int:
    target = _target(args)
    profiles = target.read()
    if args.json:
        print(json.dumps({**document(profiles), "sha256": profiles.sha256}, indent=2))
        return 0
    _print_profiles(profiles, where=target.name)
    return 0


def _set(args: argparse.Namespace) -> int:
    preferences = _preferences(args.pairs)
    receipt = _target(args).set_profile(
        args.name, preferences, precondition(args), mixing=args.mixing
    )
    return report(receipt, args)


def _delete(args: argparse.Namespace) -> int:
    return report(_target(args).delete_profile(args.name, precondition(args)), args)


def _default(args: argparse.Namespace) -> int:
    return report(_target(args).set_default(args.name, precondition(args)), args)


def _rollback(args: argparse.Namespace) -> int:
    target = _target(args)
    if args.drain and args.url is None:
        raise UsageError("--drain belongs to --url: no requests use the policies of a store file")
    return report(target.rollback(args.version, precondition(args), drain=args.drain), args)


def _apply(args: argparse.Namespace) -> int:
    target = _target(args)
    receipt = target.apply(
        args.file, precondition(args), replace=args.replace, with_its_default=args.default
    )
    code = report(receipt, args)
    applied = read_profiles(args.file).default
    if not args.dry_run and (present := target.read().default) != applied:
        print(
            f"the default is still {present!r}: the new weights are for requests with "
            f"preference_profile {applied!r}\nor model NAME@{applied}. For all others: "
            f"prefmix weights default {applied} {_target_flag(args)}\n(apply --default does both "
            "at once)"
        )
    return code


def _target_flag(args: argparse.Namespace) -> str:
    """The flag that names the target once more, for a command that a message shows."""
    flag, value = (
        ("--url", args.url) if args.url is not None else ("--weights-store", args.weights_store)
    )
    return f"{flag} {shlex.quote(str(value))}"


def _history(args: argparse.Namespace) -> int:
    if args.plot is not None and args.plot.suffix.lower() != ".png":
        raise UsageError(f"--plot is {str(args.plot)!r}, and the picture is a PNG: end it in .png")
    if args.profile is not None and args.plot is None:
        raise UsageError("--profile belongs to --plot: it names the profile that is drawn")
    check_file("--plot", args.plot)
    versions = _target(args).history()
    print(history_table(versions))
    if args.plot is not None:
        from prefmix.weights.report.history_plot import weights_over_versions
        from prefmix.weights.report.plots import png

        args.plot.write_bytes(png(weights_over_versions(versions, profile=args.profile)))
        print(f"\nplot  {args.plot}")
    return 0


def _diff(args: argparse.Namespace) -> int:
    versions = {entry.version: entry for entry in _target(args).history()}
    new = max(versions) if args.new is None else args.new
    older = [number for number in versions if number < new]
    old = args.old if args.old is not None else max(older, default=new)
    for number in (old, new):
        if number not in versions:
            kept = listed(versions)
            raise ValueError(f"version {number} is not kept; kept are: {kept}")
    print(difference_table(versions[old], versions[new]) or f"versions {old} and {new} are equal")
    return 0


def _validate(args: argparse.Namespace) -> int:
    profiles = read_profiles(args.file)
    where = "in the store's format"
    if args.weights_store is not None or args.url is not None:
        target = _target(args)
        target.apply(args.file, Precondition(dry_run=True))
        where = f"and fits {target.name}"
    _print_profiles(profiles, where=str(args.file))
    print(f"\n{args.file} is valid {where}")
    return 0


def _print_profiles(profiles: ProfileSet, *, where: str) -> None:
    print(f"{where}, version {profiles.version}, sha256 {profiles.sha256[:12]}\n")
    print(profile_table(profiles))
    print("\n* the default")
    if (signed := profiles.signed) is not None:
        print(f"changed {signed.at} by {signed.by}")


def _preferences(pairs: Sequence[str]) -> dict[str, float]:
    preferences: dict[str, Any] = {}
    for pair in pairs:
        name, equals, number = pair.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = None
        if not (name and equals) or value is None:
            raise UsageError(f"{pair!r} is not POLICY=NUMBER, such as helpful=0.5")
        if name in preferences:
            raise UsageError(f"{name!r} is given twice; one number for each policy")
        preferences[name] = value
    return preferences
