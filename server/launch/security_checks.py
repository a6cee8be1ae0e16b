"""Settings that would open the server further than intended: refused at the start, or warned of."""

from __future__ import annotations

import ipaddress
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence

from prefmix.server.auth import admin_tokens, api_keys
from prefmix.server.auth.tokens import WEAK_CHARS, exposed_file, tokens_from
from prefmix.server.config.errors import CommandError

REFUSED_VARIABLES = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": (
        "its routes would let a request load files of this machine as an adapter, and prefmix "
        "serves none of them"
    ),
    "VLLM_SERVER_DEV_MODE": (
        "its routes let anyone pause, reset or run functions in the engine, and prefmix serves "
        "none of them"
    ),
    "VLLM_ALLOW_INSECURE_SERIALIZATION": (
        "the engine's processes would unpickle what they are sent, which can run any code"
    ),
}
"""vLLM's variables that must not be on, and why."""

SAFE_FORMATS = (
    "safetensors",
    "fastsafetensors",
    "instanttensor",
    "mistral",
    "sharded_state",
    "runai_streamer",
    "runai_streamer_sharded",
    "dummy",
)
"""vLLM's load formats that read safetensors files or no files at all."""


def check_environment(environ: Mapping[str, str] = os.environ) -> None:
    """Raises CommandError if a variable opens a surface that prefmix keeps closed."""
    for name, reason in REFUSED_VARIABLES.items():
        if environ.get(name, "").strip().lower() not in ("", "0", "false"):
            raise CommandError(f"{name} is set: {reason}; unset it", exit_code=2)


def check_cross_origin(args: Namespace) -> None:
    """Raises CommandError if any web page could act with a visitor's credentials."""
    if args.allow_credentials and "*" in args.allowed_origins:
        raise CommandError(
            "vLLM's flag --allow-credentials together with --allowed-origins '*' would let any web "
            "page use a visitor's credentials here; name the origins, or leave --allow-credentials "
            "out",
            exit_code=2,
        )


def check_open_address(args: Namespace, *, allowed: bool) -> None:
    """Raises CommandError if other machines may reach a server that asks for no key.

    Args:
      args: vLLM's arguments, with all API keys in `api_key`.
      allowed: True if an open server is what the user wants.
    """
    if allowed or args.api_key or not is_public(args):
        return
    raise CommandError(
        f"{args.host or 'all addresses'} port {args.port} can be reached by other machines, and "
        f"there is no API key; set {api_keys.VARIABLE}_FILE or {api_keys.VARIABLE}, listen on "
        "127.0.0.1, or let everyone use the server by --allow-no-api-key",
        exit_code=2,
    )


def safe_load_format(given: str) -> str:
    """The load format that makes vLLM read safetensors files only.

    Raises: CommandError for a format that can run code, or that is unknown.
    """
    given = str(given).lower()
    if given in ("auto", "hf"):  # vLLM would fall back to .bin and .pt files
        return "safetensors"
    if given in SAFE_FORMATS:
        return given
    raise CommandError(
        f"vLLM's flag --load-format is {given!r}, which reads files other than safetensors; leave "
        "it out, or trust the files with --allow-unsafe-weights",
        exit_code=2,
    )


def warnings(
    args: Namespace, passthrough: Sequence[str], environ: Mapping[str, str] = os.environ
) -> Iterator[str]:
    """Yields a sentence for each setting that leaves the server more open than it need be.

    Args:
      args: vLLM's arguments, with all API keys in `api_key`.
      passthrough: the words of the command line after `--`.
      environ: the environment.
    """
    for variable in (api_keys.VARIABLE, admin_tokens.VARIABLE):
        if (exposed := exposed_file(environ, variable)) is not None:
            yield exposed
    keys = args.api_key or []
    if any(key in word for key in keys for word in passthrough):
        yield (
            "the API key is in the command line, which every user of this machine can read; give "
            f"it in {api_keys.VARIABLE}_FILE or {api_keys.VARIABLE}"
        )
    if not is_public(args):
        return
    where = f"{args.host or 'all addresses'} port {args.port}"
    if not keys:
        yield (
            f"whoever reaches {where} may use this server, for it has no API key; set "
            f"{api_keys.VARIABLE}_FILE or {api_keys.VARIABLE}, or listen on 127.0.0.1"
        )
    tokens = tokens_from(environ, admin_tokens.VARIABLE, default_name=admin_tokens.DEFAULT_NAME)
    for what, values in (("an API key", keys), ("an admin token", [value for _, value in tokens])):
        if any(len(value) < WEAK_CHARS for value in values):
            yield (
                f"{what} has less than {WEAK_CHARS} characters and can be guessed at {where}; make "
                "one with 'openssl rand -hex 16'"
            )


def is_public(args: Namespace) -> bool:
    """True if other machines may be able to connect."""
    if getattr(args, "uds", None):
        return False
    if args.host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(args.host or "0.0.0.0").is_loopback
    except ValueError:  # a name: it may be anything
        return True
