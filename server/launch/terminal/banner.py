"""The table that `prefmix serve` prints when it is ready."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from prefmix.mixing.checkpoints.safe_files import cached_folder
from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.admin import listener
from prefmix.server.auth.admin_tokens import admin_tokens
from prefmix.server.auth.api_keys import api_keys
from prefmix.server.config.live_settings import LIVE_ATTRIBUTE
from prefmix.server.console.settings import CONSOLE_ATTRIBUTE, ConsoleSettings
from prefmix.server.launch.terminal.parameter_count import human_count, num_parameters
from prefmix.weights.store.added import with_added
from prefmix.weights.store.profiles import ProfileSet


def ready_table(
    spec: MixtureSpec,
    profiles: ProfileSet,
    *,
    url: str,
    model_name: str,
    surfaces: Sequence[str],
    request: str,
    console: str | None = None,
    dtype: str | None = None,
    check: str | None = None,
    slots: str | None = None,
) -> str:
    """The server's policies, profiles and address as aligned text.

    Args:
      spec: the mixture of the configuration.
      profiles: the profiles in force, with the policies that were added.
      url: the server's base URL.
      model_name: the name that clients put in `model`.
      surfaces: one phrase for each surface that is open.
      request: a shell command that asks the server, shown last.
      console: the console's address; None if there is none.
      dtype: the number format and why, None if it is the checkpoints'.
      check: what the engine's check of itself did; None leaves it out.
      slots: what a slot for further policies costs; None without slots.
    """
    spec = with_added(spec, profiles.added)
    weights = dict(zip(spec.member_names, profiles.profiles[profiles.default], strict=True))
    rows = [("policy", "parameters", "weight", "model")]
    for member in spec.members:
        name = member.name + (" (reference)" if member is spec.reference else "")
        count = human_count(_parameters(member))
        rows.append((name, count, f"{weights[member.name]:.3g}", _model(member)))
    names = [_profile_name(name, profiles) for name in profiles.profiles]
    mixing = "" if spec.mixing == "logits" else f", mixing {spec.mixing}"
    facts = [
        ("model", f"{model_name} ({spec.weight_space} weights{mixing})"),
        ("profiles", ", ".join([*names, *(f"{name} (dormant)" for name in profiles.dormant)])),
        ("url", url),
        ("open", ", ".join(surfaces)),
    ]
    if dtype is not None:
        facts.append(("dtype", dtype))
    if check is not None:
        facts.append(("self-check", check))
    if slots is not None:
        facts.append(("slots", slots))
    if spec.base is not None:
        base = spec.checkpoints[0]
        size = human_count(_parameters(base))
        facts.insert(1, ("base", f"{_model(base)} ({size} parameters, shared by all)"))
    if console is not None:
        facts.append(("console", console))
    return "\n".join([*_align(rows), "", *_align(facts), "", "try it:", "", request])


def first_request(args: Namespace, *, url: str) -> str:
    """A shell command that asks the server for an answer; it names the key by a variable.

    Args:
      args: vLLM's arguments, with the settings of every API process left on them.
      url: the server's base URL for a client on this machine.
    """
    console: ConsoleSettings = getattr(args, CONSOLE_ATTRIBUTE)
    prompt = console.prompt or "Hello!"
    body: dict[str, Any] = {"model": args.served_model_name[0], "max_tokens": 64}
    if console.has_chat_template:
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    path = "/v1/chat/completions" if console.has_chat_template else "/v1/completions"
    place = "" if args.uds is None else f"--unix-socket {shlex.quote(args.uds)} "
    key = ' -H "Authorization: Bearer $PREFMIX_API_KEY"' if api_keys(args.api_key) else ""
    return (
        f"curl {place}{url}{path} \\\n"
        f"  -H 'Content-Type: application/json'{key} \\\n"
        f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
    )


def console_address(args: Namespace, *, url: str) -> str | None:
    """The console's address for a browser on this machine; None if it is off or out of reach."""
    is_on: bool = getattr(args, CONSOLE_ATTRIBUTE).is_on
    return f"{url}/console" if is_on and args.uds is None else None


def open_surfaces(args: Namespace) -> list[str]:
    """One phrase for each surface that the server opens.

    Args:
      args: vLLM's arguments, with the settings of every API process left on them.
    """
    keys = api_keys(args.api_key)
    surfaces = [f"inference {'with' if keys else 'without'} API key", "metrics", "health"]
    if admin_tokens(api_keys=keys):
        port = getattr(args, LIVE_ATTRIBUTE).admin_port
        surfaces.append("admin" if port is None else f"admin on {listener.HOST}:{port}")
    if not args.disable_fastapi_docs:
        surfaces.append("docs")
    if getattr(args, CONSOLE_ATTRIBUTE).is_on:
        surfaces.append("console")
    return surfaces


def _parameters(member: Policy) -> int | None:
    folder = cached_folder(member.model, member.revision)
    return None if folder is None else num_parameters(folder)


def _model(member: Policy) -> str:
    return member.model if member.revision is None else f"{member.model} @ {member.revision}"


def _profile_name(name: str, profiles: ProfileSet) -> str:
    """A profile as the table names it: `even (default)`, `soup (parameters, default)`."""
    facts = [*filter(None, [profiles.mixings.get(name)])]
    facts += ["default"] * (name == profiles.default)
    return f"{name} ({', '.join(facts)})" if facts else name


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
