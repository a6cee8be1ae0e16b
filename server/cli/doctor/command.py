"""`prefmix doctor`: what is wrong with this machine or a configuration, before anything starts.

It takes the words of `prefmix serve`, makes the same checks, and goes on after the first failure.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from prefmix.server.cli import serve
from prefmix.server.cli.doctor.report import Report
from prefmix.server.config.errors import CommandError, ConfigError
from prefmix.weights.engines.quiet import held_back_stderr


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix serve`, and --json."""
    serve.add_arguments(parser)
    parser.usage = "prefmix doctor [CONFIG.yaml] [flags of prefmix serve] [-- vLLM flags] [--json]"
    parser.epilog = (
        "Without a configuration only the machine is checked. With one, or with flags, give the\n"
        "words that you would give to prefmix serve. Nothing is started, made or changed."
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Checks and prints; returns 1 if something is wrong."""
    from prefmix.server.cli.doctor.configuration import check_configuration
    from prefmix.server.cli.doctor.machine import check_machine
    from prefmix.server.config.config_file import load_config
    from prefmix.server.launch.terminal import stages

    if args.config is not None and not os.path.lexists(args.config):
        raise CommandError(f"{args.config} does not exist; name a configuration", exit_code=2)
    report = Report()
    with stages.shown("checking this machine"), held_back_stderr(CommandError):
        has_vllm = check_machine(report)
        try:
            overrides = serve.overrides_from_flags(args)
            is_given = args.config is not None or bool(overrides)
            config = load_config(args.config, overrides) if is_given else None
        except ConfigError as error:
            report.add("configuration", "error", str(error))
        else:
            if config is not None:
                check_configuration(report, config, passthrough, has_vllm=has_vllm)
    print(report.json() if args.json else report.table())
    return 1 if report.status == "error" else 0
