"""`prefmix serve`: its flags, and from them a checked configuration for `launch`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from prefmix.mixing.spec import WeightSpace
from prefmix.server.cli.mixture_arguments import add_mixture_flags, mixture_overrides
from prefmix.server.config.errors import CommandError, ConfigError
from prefmix.server.launch.installation import require_vllm

EPILOG = """\
MODEL is a local folder in Hugging Face layout (beginning with /, ./, ../ or ~, or the name of a
folder that exists) or a hub id. Flags override the file. Everything after -- goes to vLLM, for
example: prefmix serve mixture.yaml -- --max-model-len 4096. API keys come from PREFMIX_API_KEY or
the file PREFMIX_API_KEY_FILE names, admin tokens from PREFMIX_ADMIN_TOKEN or _FILE."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix serve`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.usage = "prefmix serve [CONFIG.yaml] [flags] [-- any vLLM engine or server flag]"
    add = parser.add_argument
    add("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="configuration file")
    add_mixture_flags(parser)
    add("--weight-space", choices=get_args(WeightSpace), help="default simplex")
    add("--name", help="the model name clients use; default prefmix")
    add("--host", help="address to listen on; default 127.0.0.1")
    add("--port", type=_port, help="port to listen on; default 8000")
    add(
        "--weights-store",
        metavar="PATH",
        help="file of the profiles, changed while serving; made from CONFIG.yaml if missing",
    )
    add(
        "--admin-port",
        type=_port,
        metavar="PORT",
        help="port of 127.0.0.1 for the admin routes alone; default: on the main port",
    )
    add(
        "--statistics-every",
        type=int,
        metavar="STEPS",
        help="measure the mixture at every so many engine steps; default 100, 0 never",
    )
    add(
        "--request-log",
        choices=("off", "text", "json"),
        help="one line on stderr for each request, without its text; default off",
    )
    add(
        "--no-console",
        dest="console",
        action="store_false",
        default=None,
        help="leave out the mixing console, the page at /console",
    )
    add(
        "--max-waiting",
        type=int,
        metavar="N",
        help="requests that may wait for the engine, further ones get 503; default: half as many "
        "as it can run at once; 0 lets none wait",
    )
    add(
        "--request-timeout",
        type=float,
        metavar="SECONDS",
        help="end a request for text with 504 after so long; default: no bound",
    )
    add(
        "--max-body-bytes",
        type=int,
        metavar="BYTES",
        help="refuse longer request bodies with 413; default 4 MiB",
    )
    add(
        "--drain-timeout",
        type=float,
        metavar="SECONDS",
        help="time for requests under way when asked to end; default 30",
    )
    add("--fit-report", metavar="PATH", help="a fit's report or its folder, linked in the console")


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port; expected a number from 1 to 65535")


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Checks the configuration, then serves until a signal ends it; returns the exit code."""
    # Imported here so that --help does not wait for pydantic and PyYAML.
    from prefmix.server.config.serve_config import load_config
    from prefmix.weights.store.errors import StoreError
    from prefmix.weights.store.store import WeightsStore

    try:
        config = load_config(args.config, overrides_from_flags(args))
        spec = config.spec()
        profiles = config.profile_set(spec)
    except ConfigError as error:
        raise CommandError(str(error), exit_code=2) from None
    if config.weights_store is not None:
        try:
            profiles = WeightsStore(config.weights_store, spec=spec).create(profiles)
        except StoreError as error:
            raise CommandError(str(error)) from None

    require_vllm()
    from prefmix.server.launch.launch import launch

    return launch(config, spec, profiles, passthrough)


def overrides_from_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration fields that were given as flags."""
    fields = (
        "weight_space",
        "name",
        "host",
        "port",
        "weights_store",
        "admin_port",
        "statistics_every",
        "request_log",
        "console",
        "fit_report",
        "max_waiting",
        "request_timeout",
        "max_body_bytes",
        "drain_timeout",
    )
    overrides = {field: getattr(args, field) for field in fields} | mixture_overrides(args)
    return {field: value for field, value in overrides.items() if value is not None}
