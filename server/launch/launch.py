"""Starts a server of a mixture in this process and stays until the server ends.

Cheap checks come first: ports, secrets and the members' files, then vLLM's flags, which need vLLM,
then the members themselves. The engine comes last.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefmix.mixing.spec import MixtureSpec
from prefmix.server.admin import listener
from prefmix.server.auth.admin_tokens import admin_tokens
from prefmix.server.auth.api_keys import api_keys
from prefmix.server.config import run_folder
from prefmix.server.config.addresses import HOSTS_ATTRIBUTE
from prefmix.server.config.errors import CommandError
from prefmix.server.config.limits import LIMITS_ATTRIBUTE
from prefmix.server.config.live_settings import LIVE_ATTRIBUTE, LiveSettings, live_settings
from prefmix.server.config.prompt_settings import PROMPTS_ATTRIBUTE, PromptSettings
from prefmix.server.config.serve_config import ServeConfig
from prefmix.server.config.telemetry_settings import TELEMETRY_ATTRIBUTE, TelemetrySettings
from prefmix.server.console.settings import CONSOLE_ATTRIBUTE, ConsoleSettings
from prefmix.server.launch import security_checks
from prefmix.server.launch.environment import (
    check_entry_points,
    log_level,
    set_cpu_defaults,
    set_keep_alive,
    set_logging,
    set_no_telemetry,
    set_plugins,
    set_run_folder,
    set_safe_path,
    set_trusted_proxies,
)
from prefmix.server.launch.sighup import SighupReload
from prefmix.server.launch.start_checks import (
    check_added_policies,
    check_admin_port,
    check_before_vllm,
    check_checkpoints,
    check_front_end,
    check_port,
    check_prompts,
    check_socket,
    check_tls,
    free_socket,
)
from prefmix.server.launch.start_signals import StartSignals, end_descendants
from prefmix.server.launch.terminal import stages
from prefmix.server.launch.terminal.end_watch import EndWatch
from prefmix.server.launch.terminal.failure_message import failure_message
from prefmix.server.launch.terminal.startup_log import StartupLog, say
from prefmix.server.launch.vllm_server import run_vllm
from prefmix.weights.store.profiles import ProfileSet

if TYPE_CHECKING:
    from prefmix.mixing.checkpoints.compatibility import CheckedMembers


def launch(
    config: ServeConfig, spec: MixtureSpec, profiles: ProfileSet, passthrough: Sequence[str]
) -> int:
    """Serves until a signal ends the server.

    Args:
      config: the addresses to listen on and the engine flags.
      spec: the mixture.
      profiles: the profiles to start with.
      passthrough: the words after `--`.
    Returns: the exit code 0. A signal during the start ends the process with 130 or 143 instead.
    Raises: CommandError if the server cannot start.
    """
    is_quiet = log_level() == "warning"
    security_checks.check_environment()
    is_headless = config.is_headless(passthrough)
    has_socket = any(word.startswith("--uds") for word in passthrough) or "uds" in config.engine
    if not is_headless and not has_socket:
        check_port(config.host, config.port)
    if config.admin_port is not None:
        check_port(listener.HOST, config.admin_port, flag="--admin-port")
    check_before_vllm(config, spec, passthrough, is_headless=is_headless)
    check_added_policies(config, profiles)
    set_logging()
    set_keep_alive()
    set_trusted_proxies(config.trusted_proxies)
    set_no_telemetry()
    set_safe_path()
    set_plugins()
    log = StartupLog(enabled=is_quiet, num_checkpoints=len(spec.checkpoints))
    watch = EndWatch(log.say)
    with (
        live_settings(
            config.weights_store,
            config.admin_port,
            config.max_profiles,
            config.policies_dir,
            config.policies_manifest,
            config.dormant_profiles,
        ) as live,
        log,
        _start_signals(log, live, watch) as signals,
    ):
        set_run_folder(live.folder)
        try:
            args, members = _checked_arguments(config, spec, passthrough, log)
            _leave_settings(args, members, config, profiles, live)
            say(f"starting the engine with {', '.join(spec.member_names)}")
            wait = ", which wait for the first machine" if args.headless else ""
            log.stage(stages.PROCESSES, f"starting the engine's processes{wait}")
            reload = nullcontext() if live.store is None else SighupReload(live.folder)
            with reload, free_socket(args):
                run_vllm(args, spec, profiles, log=log, signals=signals)
        except CommandError:
            raise
        except Exception as error:
            watch.stop()
            if not is_quiet:
                raise
            what = "the server failed" if signals.is_ready else "the server did not start"
            raise CommandError(failure_message(what, error, logged_cause=log.cause)) from error
        finally:
            end_descendants()
    return 0


def _start_signals(log: StartupLog, live: LiveSettings, watch: EndWatch) -> StartSignals:
    def before_exit() -> None:
        log.close()
        run_folder.remove(live.folder)

    def on_signal() -> None:
        log.mute()
        watch.start()

    return StartSignals(on_signal=on_signal, before_exit=before_exit)


def _checked_arguments(
    config: ServeConfig, spec: MixtureSpec, passthrough: Sequence[str], log: StartupLog
) -> tuple[Namespace, CheckedMembers]:
    """vLLM's arguments, after every check that needs no engine. Imports vLLM (seconds)."""
    log.stage(stages.IMPORT, "loading vLLM")
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.platforms import current_platform

    from prefmix.server.launch.engine_args import build_arguments

    cli_env_setup()
    check_entry_points()
    args = build_arguments(config, config.engine_spec(spec), passthrough)
    configure_logging_from_args(args)
    args.api_key = api_keys(args.api_key) or None
    security_checks.check_open_address(args, allowed=config.allow_no_api_key or args.headless)
    check_socket(args)
    check_tls(args)
    for warning in security_checks.warnings(args, passthrough):
        say(f"warning: {warning}")
    check_front_end()
    check_admin_port(config, admin_tokens(api_keys=api_keys(args.api_key)))
    if current_platform.is_cpu():
        for line in set_cpu_defaults(os.environ, kv_cache_bytes=args.kv_cache_memory_bytes):
            say(line)
    log.stage(stages.FILES, "checking the policies' files")
    checked = check_checkpoints(config, spec, trust_remote_code=args.trust_remote_code)
    check_prompts(_prompts(config, args, checked), args)
    for warning in checked.warnings:
        say(f"warning: {warning}")
    if checked.vocabulary_note is not None:
        say(checked.vocabulary_note)
    return args, checked


def _leave_settings(
    args: Namespace,
    members: CheckedMembers,
    config: ServeConfig,
    profiles: ProfileSet,
    live: LiveSettings,
) -> None:
    """Leaves prefmix's settings on vLLM's arguments, which reach every API process."""
    from prefmix.server.plugin import PROFILES_ATTRIBUTE

    has_admin_token = bool(admin_tokens(api_keys=api_keys(args.api_key)))
    telemetry = TelemetrySettings(
        statistics_every=config.statistics_every, request_log=config.request_log
    )
    console = ConsoleSettings(
        is_on=config.console,
        prompt=config.console_prompt,
        has_chat_template=members.has_chat_template or args.chat_template is not None,
        reports=None if config.reports_dir is None else Path(config.reports_dir).absolute(),
        has_admin=has_admin_token and config.admin_port is None,
    )
    setattr(args, PROFILES_ATTRIBUTE, profiles)
    setattr(args, LIVE_ATTRIBUTE, live)
    setattr(args, TELEMETRY_ATTRIBUTE, telemetry)
    setattr(args, LIMITS_ATTRIBUTE, config.limits())
    setattr(args, HOSTS_ATTRIBUTE, config.allowed_hosts)
    setattr(args, CONSOLE_ATTRIBUTE, console)
    setattr(args, PROMPTS_ATTRIBUTE, _prompts(config, args, members))


def _prompts(config: ServeConfig, args: Namespace, members: CheckedMembers) -> PromptSettings:
    has_template = members.has_chat_template or args.chat_template is not None
    return replace(config.prompts(), has_chat_template=has_template)
