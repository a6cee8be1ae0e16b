"""Starts vLLM with the mixture, in this process, and ends with it.

Order: what is cheap to check comes first (port, then flags, then the policies' files), the engine
last. vLLM's console script is not used: its CPU wheel ships one that cannot run.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec
from prefmix.server.admin import listener
from prefmix.server.auth.admin_tokens import admin_tokens
from prefmix.server.auth.api_keys import api_keys
from prefmix.server.auth.tokens import Tokens
from prefmix.server.config.errors import CommandError
from prefmix.server.config.limits import LIMITS_ATTRIBUTE
from prefmix.server.config.live_settings import LIVE_ATTRIBUTE, LiveSettings, live_settings
from prefmix.server.config.serve_config import ServeConfig
from prefmix.server.config.telemetry_settings import TELEMETRY_ATTRIBUTE, TelemetrySettings
from prefmix.server.console.routes import CONSOLE_ATTRIBUTE, ConsoleSettings
from prefmix.server.launch import safety
from prefmix.server.launch.banner import ready_table
from prefmix.server.launch.environment import (
    check_entry_points,
    log_level,
    set_cpu_defaults,
    set_keep_alive,
    set_logging,
    set_no_telemetry,
    set_plugins,
)
from prefmix.server.launch.probe import Address, ProbeError, ReadyProbe
from prefmix.server.launch.remedies import with_remedy
from prefmix.server.launch.sighup import SighupReload
from prefmix.server.launch.signals import StartSignals, end_descendants
from prefmix.server.launch.startup_log import OWN_PREFIX, StartupLog
from prefmix.weights.store.profiles import ProfileSet

_MAX_CAUSE_CHARS = 1000


def launch(
    config: ServeConfig, spec: MixtureSpec, profiles: ProfileSet, passthrough: Sequence[str]
) -> int:
    """Serves until a signal ends it.

    Args:
      config: where to listen and which engine flags to use.
      spec: the mixture.
      profiles: the profiles to start with.
      passthrough: the words after `--`.
    Returns: the exit code: 0 after an ordered end, 130 or 143 if a signal came during the start.
    Raises: CommandError if the server cannot start.
    """
    quiet = log_level() == "warning"
    safety.check_environment()
    if not any(word.startswith("--uds") for word in passthrough) and "uds" not in config.engine:
        check_port(config.host, config.port)
    if config.admin_port is not None:
        check_port(listener.HOST, config.admin_port, flag="--admin-port")
    set_logging()
    set_keep_alive()
    set_no_telemetry()
    set_plugins()
    with (
        live_settings(config.weights_store, config.admin_port) as live,
        StartupLog(enabled=quiet) as log,
        _signals(log, live) as signals,
    ):
        try:
            args = _prepare(config, spec, profiles, passthrough)
            setattr(args, LIVE_ATTRIBUTE, live)
            observing = TelemetrySettings(
                statistics_every=config.statistics_every, request_log=config.request_log
            )
            setattr(args, TELEMETRY_ATTRIBUTE, observing)
            setattr(args, LIMITS_ATTRIBUTE, config.limits())
            setattr(args, CONSOLE_ATTRIBUTE, _console_settings(config, args))
            with nullcontext() if live.store is None else SighupReload(live.folder):
                return _serve(args, spec, profiles, log, signals)
        except CommandError:
            raise
        except Exception as error:
            if not quiet:
                raise
            cause = log.cause if _is_secondary(error) else None
            what = "the server failed" if signals.is_ready else "the server did not start"
            raise CommandError(with_remedy(f"{what}: {cause or describe(error)}")) from error
        finally:
            end_descendants()


def check_port(host: str, port: int, *, flag: str = "--port") -> None:
    """Checks that the port, given by `flag`, can be bound. Raises: CommandError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CommandError(
                f"port {port} on {host} is in use; stop what listens there or choose another with "
                f"{flag}"
            ) from None
        reason = error.strerror or str(error)
        raise CommandError(f"cannot listen on {host} port {port}: {reason}") from None


def describe(error: Exception) -> str:
    """An exception as one line; pydantic's dumps become their first message."""
    errors = getattr(error, "errors", None)
    if callable(errors) and (details := errors()):
        text = str(details[0].get("msg", error)).removeprefix("Value error, ")
    else:
        text = str(error) or type(error).__name__
    line = " ".join(text.split())
    return line if len(line) <= _MAX_CAUSE_CHARS else line[:_MAX_CAUSE_CHARS] + "..."


def _prepare(
    config: ServeConfig, spec: MixtureSpec, profiles: ProfileSet, passthrough: Sequence[str]
) -> Namespace:
    """Everything that can be refused before the engine starts. Imports vLLM (seconds)."""
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.platforms import current_platform

    from prefmix.server.launch.engine_args import build_arguments
    from prefmix.server.plugin import PROFILES_ATTRIBUTE

    cli_env_setup()
    check_entry_points()
    args = build_arguments(config, spec, passthrough)
    configure_logging_from_args(args)
    setattr(args, PROFILES_ATTRIBUTE, profiles)
    args.api_key = api_keys(args.api_key) or None
    for warning in safety.warnings(args, passthrough):
        _say(f"warning: {warning}")
    _check_front_end()
    _check_admin(config, _admin_tokens(args))
    if current_platform.is_cpu():
        for line in set_cpu_defaults(os.environ, kv_cache_bytes=args.kv_cache_memory_bytes):
            _say(line)
    _check_members(
        spec,
        trust_remote_code=args.trust_remote_code,
        allow_unsafe_weights=config.allow_unsafe_weights,
    )
    _say(f"starting the engine with {', '.join(spec.member_names)}")
    return args


def _check_members(
    spec: MixtureSpec, *, trust_remote_code: bool, allow_unsafe_weights: bool
) -> None:
    from prefmix.mixing.checkpoints.compatibility import CompatibilityError, check_members
    from prefmix.mixing.checkpoints.safe_files import CheckpointFilesError, check_safe_files

    try:
        if not allow_unsafe_weights:
            check_safe_files(spec)
        for warning in check_members(spec, trust_remote_code=trust_remote_code):
            _say(f"warning: {warning}")
    except (CompatibilityError, CheckpointFilesError) as error:
        raise CommandError(str(error)) from None


def _check_front_end() -> None:
    import vllm.envs as vllm_envs

    if vllm_envs.VLLM_USE_RUST_FRONTEND:
        raise CommandError(
            "VLLM_USE_RUST_FRONTEND is set; vLLM's Rust front-end loads no endpoint plugins, so "
            "requests could not name their weights: unset it",
            exit_code=2,
        )


def _serve(
    args: Namespace,
    spec: MixtureSpec,
    profiles: ProfileSet,
    log: StartupLog,
    signals: StartSignals,
) -> int:
    """Runs vLLM's own `serve` until it ends."""
    from vllm.entrypoints.cli.serve import ServeSubcommand

    address = Address(
        host=args.host, port=args.port, tls=bool(args.ssl_certfile), unix_socket=args.uds
    )
    failures: list[ProbeError] = []

    def ready() -> None:
        log.release()
        signals.ready()
        print(_table(args, spec, profiles, address), flush=True)

    def fail(error: ProbeError) -> None:
        failures.append(error)
        signals.ready()
        os.kill(os.getpid(), signal.SIGTERM)

    key = next(iter(_keys(args)), None)
    with ReadyProbe(
        address,
        # A store may have been changed while the engine started.
        sha256=None if _live(args).store else profiles.sha256,
        key=key,
        on_ready=ready,
        on_failure=fail,
    ) as probe:
        try:
            ServeSubcommand.cmd(args)
        except SystemExit as end:  # how vLLM ends several API processes
            if end.code:
                raise RuntimeError(f"vLLM ended with exit code {end.code}") from end
    if failures:
        raise failures[0]
    if not probe.answered:
        raise RuntimeError("vLLM ended before it answered")
    if not signals.asked_to_end:
        # vLLM ends as if it had been asked to.
        raise RuntimeError("the engine's process died; its last words are above, if it had any")
    return 0


def _signals(log: StartupLog, live: LiveSettings) -> StartSignals:
    def before_exit() -> None:
        log.close()
        shutil.rmtree(live.folder, ignore_errors=True)

    return StartSignals(on_signal=log.mute, before_exit=before_exit)


def _table(args: Namespace, spec: MixtureSpec, profiles: ProfileSet, address: Address) -> str:
    guarded = "with API key" if _keys(args) else "without API key"
    surfaces = [f"inference {guarded}", "metrics", "health"]
    if _admin_tokens(args):
        port = _live(args).admin_port
        surfaces.append("admin" if port is None else f"admin on {listener.HOST}:{port}")
    if not args.disable_fastapi_docs:
        surfaces.append("docs")
    if getattr(args, CONSOLE_ATTRIBUTE).is_on:
        surfaces.append("console")
    return ready_table(
        spec,
        profiles,
        url=address.url,
        model_name=args.served_model_name[0],
        surfaces=surfaces,
    )


def _keys(args: Namespace) -> list[str]:
    return api_keys(args.api_key)


def _admin_tokens(args: Namespace) -> Tokens:
    return admin_tokens(api_keys=_keys(args))


def _console_settings(config: ServeConfig, args: Namespace) -> ConsoleSettings:
    return ConsoleSettings(
        is_on=config.console,
        fit_report=None if config.fit_report is None else Path(config.fit_report).absolute(),
        has_admin=bool(_admin_tokens(args)) and config.admin_port is None,
    )


def _check_admin(config: ServeConfig, tokens: Tokens) -> None:
    if config.admin_port is not None and not tokens:
        raise CommandError(
            "--admin-port is given but no admin token; set PREFMIX_ADMIN_TOKEN, or leave the port "
            "out",
            exit_code=2,
        )
    if config.admin_port is not None and config.admin_port == config.port:
        raise CommandError(
            f"--admin-port and --port are both {config.port}; give the admin routes another port, "
            "or leave --admin-port out to have them on the main one",
            exit_code=2,
        )


def _live(args: Namespace) -> LiveSettings:
    live: LiveSettings = getattr(args, LIVE_ATTRIBUTE)
    return live


def _is_secondary(error: Exception) -> bool:
    """Whether an exception only says that another process failed."""
    return isinstance(error, RuntimeError)


def _say(line: str) -> None:
    print(f"{OWN_PREFIX}{line}", file=sys.stderr, flush=True)
