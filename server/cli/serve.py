"""`prefmix serve`: reads the flags and the file into a checked configuration, then launches it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefmix.mixing.ways_to_mix import MIXINGS
from prefmix.server.cli.mixture_arguments import add_mixture_arguments, mixture_overrides
from prefmix.server.config.errors import CommandError, ConfigError
from prefmix.server.launch.installation import require_vllm

EPILOG = """\
MODEL is a local folder in Hugging Face layout or a hub id. A folder begins with /, ./, ../ or ~,
or is the name of a folder that exists. Flags override the file.

All words after -- go to vLLM."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix serve`."""
    parser.epilog = EPILOG
    parser.usage = "prefmix serve [CONFIG.yaml] [flags] [-- any vLLM engine or server flag]"
    mixture = add_mixture_arguments(parser, weight_space=True, prompts=True)
    mixture.add_argument(
        "--mixing",
        choices=MIXINGS,
        help="the way to mix of requests that name none. logits: the policies' predictions of each "
        "token (default); parameters: the policies' parameters, at the cost of one policy, with "
        "--base only",
    )
    mixture.add_argument(
        "--request-prompts",
        action="store_true",
        default=None,
        help="let requests give policies prompts of their own",
    )
    mixture.add_argument(
        "--max-own-tokens",
        type=int,
        metavar="N",
        help="most tokens of the policies' own prompts of a request together; default eight times "
        "the longest context",
    )
    _add_address_flags(parser.add_argument_group("address and surfaces"))
    _add_profile_flags(parser.add_argument_group("profiles"))
    _add_slot_flags(parser.add_argument_group("policies at runtime"))
    _add_traffic_flags(parser.add_argument_group("traffic"))
    _add_telemetry_flags(parser.add_argument_group("metrics and logs"))


def _add_address_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--name", help="model name that clients use; default prefmix")
    add("--host", help="address to listen on; default 127.0.0.1")
    add("--port", type=_port, help="port to listen on; default 8000")
    add(
        "--allowed-host",
        action="append",
        dest="allowed_hosts",
        metavar="NAME",
        help="answer requests for this host as well (repeatable; .example.org: all names below it, "
        "*: any); addresses, localhost and --host are always allowed",
    )
    add(
        "--trusted-proxy",
        action="append",
        dest="trusted_proxies",
        metavar="ADDRESS",
        help="believe the X-Forwarded-For and X-Forwarded-Proto of this address or network "
        "(repeatable); default: of nobody",
    )
    add(
        "--allow-no-api-key",
        action="store_true",
        default=None,
        help="listen without an API key even on an address that other machines reach",
    )
    add(
        "--admin-port",
        type=_port,
        metavar="PORT",
        help="port of 127.0.0.1 for the admin routes alone; default: the main port has them",
    )
    add(
        "--no-console",
        dest="console",
        action="store_false",
        default=None,
        help="leave out the mixing console, the page at /console",
    )
    add("--console-prompt", metavar="TEXT", help="the prompt that the console begins with")
    add("--reports-dir", metavar="FOLDER", help="reports of fits and evaluations for the console")


def _add_profile_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--weights-store",
        metavar="PATH",
        help="file that keeps the profiles and can change while serving; if missing, it is made "
        "from the profiles of CONFIG.yaml",
    )
    group.add_argument(
        "--max-profiles",
        type=int,
        metavar="N",
        help="most profiles that there may be; default 256",
    )
    group.add_argument(
        "--dormant-profiles",
        action="store_const",
        const=True,
        help="keep profiles that name policies which are not there, and serve them once these are; "
        "otherwise they are refused",
    )


def _add_slot_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--adapter-slots",
        type=int,
        metavar="N",
        help="keep room for N adapters of --base that can be added while the server runs; default "
        "0",
    )
    add(
        "--adapter-slots-without-kv",
        type=int,
        metavar="M",
        help="give M of the N slots no KV cache: policies added there are for requests that mix "
        "parameters only; default 0",
    )
    add(
        "--max-adapter-rank",
        type=int,
        metavar="R",
        help="largest rank of an adapter that is added; default 16",
    )
    add(
        "--policies-dir",
        metavar="FOLDER",
        help="folder of the adapters that can be added, each in a folder of its own below it",
    )
    add(
        "--no-slot-prompts",
        dest="slot_prompts",
        action="store_const",
        const=False,
        help="let no policy that is added have a prompt of its own",
    )
    add(
        "--policies-manifest",
        metavar="FILE",
        help="file that names the policies to be added, followed whenever it changes; requests can "
        "then neither add nor remove policies",
    )


def _add_traffic_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--max-waiting",
        type=int,
        metavar="N",
        help="most requests that may wait for the engine, further ones get 503; 0 lets none wait; "
        "default: half as many as can run at once",
    )
    add(
        "--request-timeout",
        type=_seconds_or_none,
        metavar="SECONDS",
        help="end a request for text with 504 after this time, none: never; default 600",
    )
    add(
        "--max-body-bytes",
        type=int,
        metavar="BYTES",
        help="refuse longer request bodies with 413; default 4 MiB",
    )
    add(
        "--max-connections",
        type=int,
        metavar="N",
        help="most connections of each API process; default: two for each answer that can run or "
        "wait, and 1024 more",
    )
    add(
        "--max-candidates",
        type=int,
        metavar="N",
        help="most candidates that a request may have drawn for an answer, 0 serves none; default "
        "16",
    )
    add(
        "--max-candidate-tokens",
        type=int,
        metavar="N",
        help="longest answer that is picked from candidates; default 512 tokens",
    )
    add(
        "--drain-timeout",
        type=float,
        metavar="SECONDS",
        help="time that running requests have to end when the server is asked to; default 30",
    )


def _add_telemetry_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--statistics-every",
        type=int,
        metavar="STEPS",
        help="measure the mixture at every STEPS-th engine step; 0 never; default 100",
    )
    add(
        "--request-log",
        choices=("off", "text", "json"),
        help="write one line on stderr for each request, without its text; default off",
    )


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port; expected a number from 1 to 65535")


def _seconds_or_none(text: str) -> float | str:
    try:
        return "none" if text == "none" else float(text)
    except ValueError:
        message = f"{text!r} is not a time; expected a number of seconds, or none"
        raise argparse.ArgumentTypeError(message) from None


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Checks the configuration and serves until a signal comes; returns the exit code."""
    # Imported here so that --help does not wait for pydantic and PyYAML.
    from prefmix.server.config.config_file import load_config
    from prefmix.server.config.slot_settings import prompts_refusal
    from prefmix.weights.store.added import lacking_slots
    from prefmix.weights.store.errors import StoreError
    from prefmix.weights.store.profiles import ProfileError, check_num_profiles
    from prefmix.weights.store.store import WeightsStore

    try:
        config = load_config(args.config, overrides_from_flags(args))
        is_headless = config.is_headless(passthrough)
        if is_headless:
            config = config.model_copy(update={"weights_store": None, "admin_port": None})
        spec = config.spec()
        engine = config.engine_spec(spec)
        if config.adapter_slots and config.weights_store is None and not is_headless:
            raise ConfigError(
                "adapter_slots need --weights-store PATH, a file that keeps the policies that were "
                "added; add it"
            )
        manifest = config.policies_manifest
        if manifest is not None and not is_headless and not Path(manifest).parent.is_dir():
            raise ConfigError(
                f"policies_manifest is {manifest}, and there is no such folder to watch; make or "
                "mount it (the file itself may come later)"
            )
        profiles = config.profile_set(spec)
        check_num_profiles(len(profiles.profiles) + len(profiles.dormant), config.max_profiles)
    except (ConfigError, ProfileError) as error:
        raise CommandError(str(error), exit_code=2) from None
    if config.weights_store is not None:
        try:
            store = WeightsStore(
                config.weights_store,
                spec=spec,
                max_profiles=config.max_profiles,
                takes_added=True,
                takes_dormant=config.dormant_profiles,
            )
            profiles = store.create(profiles)
        except StoreError as error:
            raise CommandError(str(error)) from None
    if (flags := lacking_slots(profiles.added, engine)) is not None:
        raise CommandError(
            f"{config.weights_store} has {len(profiles.added)} added policies, and this "
            f"configuration {config.adapter_slots} slots for them, "
            f"{config.adapter_slots_without_kv} of them without KV cache; start it with {flags} or "
            "more, or return to a version without them by 'prefmix weights rollback'",
            exit_code=2,
        )
    if (refusal := prompts_refusal(profiles.added, engine)) is not None:
        raise CommandError(
            f"{config.weights_store} has {refusal}, or return to a version without them by "
            "'prefmix weights rollback'",
            exit_code=2,
        )

    require_vllm()
    from prefmix.server.launch.launch import launch

    return launch(config, spec, profiles, passthrough)


def overrides_from_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration fields that were given as flags."""
    fields = (
        "mixing",
        "request_prompts",
        "max_own_tokens",
        "name",
        "host",
        "port",
        "allowed_hosts",
        "trusted_proxies",
        "allow_no_api_key",
        "weights_store",
        "max_profiles",
        "dormant_profiles",
        "adapter_slots",
        "adapter_slots_without_kv",
        "max_adapter_rank",
        "policies_dir",
        "slot_prompts",
        "policies_manifest",
        "admin_port",
        "statistics_every",
        "request_log",
        "console",
        "console_prompt",
        "reports_dir",
        "max_waiting",
        "request_timeout",
        "max_body_bytes",
        "max_connections",
        "max_candidates",
        "max_candidate_tokens",
        "drain_timeout",
    )
    overrides = {field: getattr(args, field) for field in fields} | mixture_overrides(args)
    return {field: value for field, value in overrides.items() if value is not None}
