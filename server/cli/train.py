"""`prefmix train METHOD`: reads flags and file into settings, and trains one policy."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefmix.server.cli.shell.help_text import HelpFormatter
from prefmix.server.config.errors import CommandError
from prefmix.server.launch.installation import InstallationError, require_extra

if TYPE_CHECKING:
    from prefmix.policies.train.settings import TrainSettings

SUMMARIES = {
    "dpo": "Direct Preference Optimization, the baseline",
    "maximum-preference": "preference as reward, off-policy (arXiv 2312.16430)",
    "mixed-preference": "DPO on clear pairs, then RLOO on the others' prompts (arXiv 2403.19443)",
}
EPILOG = """\
The data are preference pairs in TRL's format: prompt, chosen and rejected, as texts or messages.
A run that was killed goes on when it is started again with the same settings. 'prefmix serve'
serves the result.

Example: prefmix train dpo --base ./base --data pairs.jsonl --output helpful --lora-rank 16"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the methods, each with a flag for every one of its settings."""
    from prefmix.policies.train.settings import METHODS

    methods = parser.add_subparsers(dest="method", metavar="METHOD", required=True)
    for name, settings in METHODS.items():
        sub = methods.add_parser(
            name,
            help=SUMMARIES[name],
            description=f"{SUMMARIES[name]}.",
            epilog=EPILOG,
            formatter_class=HelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        sub.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="YAML file of these settings, which flags override",
        )
        _add_settings(sub, settings)


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Trains one policy; returns the exit code."""
    from prefmix.policies.train import SettingsError, TrainError
    from prefmix.policies.train.inputs import check_inputs

    if passthrough:
        raise CommandError("'prefmix train' takes nothing after '--'", exit_code=2)
    try:
        settings = _settings(args)
        check_inputs(settings)
        _require_packages(settings)
        from prefmix.policies.train.jobs import run as run_job

        print(f"\nwrote {run_job(settings)}")
    except SettingsError as error:
        raise CommandError(str(error), exit_code=2) from None
    except TrainError as error:
        raise CommandError(str(error)) from None
    return 0


def _require_packages(settings: TrainSettings) -> None:
    """Raises InstallationError if packages are missing, or first TrainError if the data is wrong.

    Whoever installs gigabytes should not read only then that a row is wrong.
    """
    from prefmix.policies.train.inputs import read_data

    try:
        require_extra("train")
    except InstallationError:
        with contextlib.suppress(ImportError):  # of a form that needs one of the packages
            read_data(settings)
        raise


def _add_settings(parser: argparse.ArgumentParser, settings: type[TrainSettings]) -> None:
    from prefmix.policies.train.settings import kind_of

    for item in fields(settings):
        options: dict[str, Any] = {"help": item.metadata["help"], "dest": item.name}
        if not any(item.default is none for none in (MISSING, None, False)):  # 0 is a default
            options["help"] += f"; default {item.default}"
        if item.metadata["adapter"] is not None:
            options["help"] += f", for an adapter {item.metadata['adapter']}"
        kind = kind_of(item, settings)
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            # A Path would lose the dot of ./data, by which it is no hub id.
            options |= {"type": str if kind is Path else kind, "choices": item.metadata["choices"]}
            options["metavar"] = None if options["choices"] else item.name.split("_")[-1].upper()
        parser.add_argument(f"--{item.name.replace('_', '-')}", **options)


def _settings(args: argparse.Namespace) -> TrainSettings:
    from prefmix.policies.train import SettingsError
    from prefmix.policies.train.settings import METHODS, build, resolve_paths
    from prefmix.server.config.yaml_file import YamlError, read_yaml

    flags = {name: value for name, value in vars(args).items() if name not in ("method", "config")}
    cls = METHODS[args.method]
    values: dict[Any, Any] = {}
    if "config" in args:
        try:
            values = resolve_paths(cls, read_yaml(args.config), args.config.parent)
        except YamlError as error:
            raise SettingsError(str(error)) from None
        if values.get("allow_unsafe_weights", False) is not False:
            raise SettingsError(
                f"{args.config}: allow_unsafe_weights cannot be set in a file, as whoever writes "
                "it must not be able to run code here; give --allow-unsafe-weights"
            )
    return build(cls, {**values, **flags})
