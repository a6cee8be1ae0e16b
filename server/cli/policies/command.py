"""`prefmix policies`: lists, adds and removes the policies of a running server.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

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
from prefmix.server.config.errors import ConfigError
from prefmix.server.config.prompt_settings import text_or_file

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
    sub = command(
        "add", _add, "add an adapter or a prompt as a policy, or replace one that was added"
    )
    sub.add_argument(
        "name",
        metavar="POLICY",
        help="the policy's name: 1 to 64 letters, digits, '_', '-' or '.', beginning with a letter "
        "or digit",
    )
    sub.add_argument(
        "adapter",
        metavar="FOLDER",
        nargs="?",
        help="the adapter's folder below the server's --policies-dir; without it the policy is the "
        "base itself, under --system",
    )
    sub.add_argument(
        "--system",
        metavar="TEXT",
        help="the system message that this policy alone reads before every conversation, or @FILE; "
        "other users of this machine can see TEXT while the command runs",
    )
    sub.add_argument(
        "--without-kv",
        action="store_true",
        help="take a slot without KV cache: the policy is for requests that mix parameters only",
    )
    sub.add_argument(
        "--drain",
        action="store_true",
        help="replace a policy in its own slot if no other is free: new requests for it get 503 "
        "until those under way have ended, which may take a minute",
    )
    add_precondition(sub)
    sub = command("remove", _remove, "remove a policy that was added")
    sub.add_argument(
        "name", metavar="POLICY", help="the policy's name, as 'prefmix policies list' prints it"
    )
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
    if slots.get("total_without_kv"):
        print(f" ({slots['free_without_kv']} of them without KV cache)", end="")
    print(f", for adapters up to rank {slots['max_rank']}" if slots["total"] else "")
    if found.get("manifest"):
        print(f"added by the manifest {found['manifest']}, and by no request")
    width = max(len(policy["name"]) for policy in found["policies"])
    for policy in found["policies"]:
        parts = [policy["adapter"]] if "adapter" in policy else []
        parts += [] if policy["added"] else ["of the configuration"]
        parts += ["with a prompt"] if policy.get("has_prompt") else []
        parts += [] if policy.get("kv_cache", True) else ["without KV cache: mixes parameters only"]
        parts += [] if policy.get("ready", True) else ["not served now"]
        print(f"{policy['name'].ljust(width)}  {', '.join(parts)}")
    return 0


def _add(args: argparse.Namespace) -> int:
    if args.adapter is None and args.system is None:
        raise UsageError("give the adapter's FOLDER, --system TEXT, or both")
    try:
        system = None if args.system is None else text_or_file(args.system, "--system")
    except ConfigError as error:
        raise UsageError(str(error)) from None
    receipt = _server(args).add_policy(
        args.name,
        precondition(args),
        adapter=args.adapter,
        system=system,
        without_kv=args.without_kv,
        drain=args.drain,
    )
    return report(receipt, args)


def _remove(args: argparse.Namespace) -> int:
    receipt = _server(args).remove_policy(args.name, precondition(args), drain=args.drain)
    return report(receipt, args)
