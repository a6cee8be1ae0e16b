"""`prefmix policies`: lists, adds and removes the policies of a running server.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

from prefmix.server.cli.weights import (
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
from prefmix.server.cli.weights_server import ServerTarget

EPILOG = f"""\
Every action works on a running server (--url URL), which was started with --adapter-slots. It needs
the server's admin token, from --token-file FILE, from the environment variable {TOKEN_VARIABLE}, or
from --token TOKEN, which other users of this machine can see.

Example: prefmix policies add careful careful/step-400 --url http://127.0.0.1:8000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands of `prefmix policies` and their flags."""
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def command(
        name: str, action: Callable[[argparse.Namespace], int], summary: str
    ) -> argparse.ArgumentParser:
        sub = add_action(commands, name, action, summary)
        add_server(sub)
        return sub

    sub = command("list", _list, "print the policies in force and the free slots")
    sub.add_argument("--json", action="store_true", help="print JSON, as the server answers")
    sub = command("add", _add, "add an adapter as a policy, or replace one that was added")
    sub.add_argument("name", metavar="POLICY")
    sub.add_argument(
        "adapter", metavar="FOLDER", help="the adapter's folder below the server's --policies-dir"
    )
    add_precondition(sub)
    sub = command("remove", _remove, "remove a policy that was added")
    sub.add_argument("name", metavar="POLICY")
    sub.add_argument(
        "--drain", action="store_true", help="also if requests under way use it, which end with it"
    )
    add_precondition(sub)


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Runs one action; returns the exit code."""
    try:
        if passthrough:
            raise UsageError("prefmix policies takes nothing after '--'")
        if args.url is None:
            raise UsageError("give --url URL, such as http://127.0.0.1:8000")
        code: int = args.run_action(args)
    except UsageError as error:
        return fail(error, code=2)
    except ValueError as error:  # a refusal by the server
        return fail(error, code=1)
    return code


def _server(args: argparse.Namespace) -> ServerTarget:
    return ServerTarget(args.url, admin_token(args))


def _list(args: argparse.Namespace) -> int:
    found = _server(args).policies()
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    slots = found["slots"]
    print(f"version {found['version']}, {slots['free']} of {slots['total']} slots free", end="")
    print(f", for adapters up to rank {slots['max_rank']}" if slots["total"] else "")
    width = max(len(policy["name"]) for policy in found["policies"])
    for policy in found["policies"]:
        where = policy["adapter"] if policy["added"] else "of the configuration"
        print(f"{policy['name'].ljust(width)}  {where}")
    return 0


def _add(args: argparse.Namespace) -> int:
    receipt = _server(args).add_policy(args.name, args.adapter, precondition(args))
    return report(receipt, args)


def _remove(args: argparse.Namespace) -> int:
    receipt = _server(args).remove_policy(args.name, precondition(args), drain=args.drain)
    return report(receipt, args)
