"""Checks of what `prefmix serve` was asked to do, made before the engine starts.

Every check ends the start with one sentence, a CommandError, that says how to put it right.
"""

from __future__ import annotations

import errno
import socket

from prefmix.mixing.spec import MixtureSpec
from prefmix.server.auth.tokens import Tokens
from prefmix.server.config.errors import CommandError
from prefmix.server.config.serve_config import ServeConfig
from prefmix.server.launch.in_process import check_models


def check_port(host: str, port: int, *, flag: str = "--port") -> None:
    """Checks that the port, given by `flag`, can be bound. Raises: CommandError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CommandError(
                f"port {port} on {host} is in use; stop what listens there or choose another with "
                f"{flag}"
            ) from None
        reason = error.strerror or str(error)
        raise CommandError(f"cannot listen on {host} port {port}: {reason}") from None


def check_admin_port(config: ServeConfig, tokens: Tokens) -> None:
    """Checks that an admin port comes with an admin token and is not the main port.

    Raises: CommandError.
    """
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


def check_front_end() -> None:
    """Checks that vLLM's Python front end serves, which alone loads our routes.

    Raises: CommandError.
    """
    import vllm.envs as vllm_envs

    if vllm_envs.VLLM_USE_RUST_FRONTEND:
        raise CommandError(
            "VLLM_USE_RUST_FRONTEND is set; vLLM's Rust front-end loads no endpoint plugins, so "
            "requests could not name their weights: unset it",
            exit_code=2,
        )


def check_checkpoints(
    config: ServeConfig, spec: MixtureSpec, *, trust_remote_code: bool
) -> tuple[str, ...]:
    """Checks that the members' files can be loaded safely and mixed; returns warnings.

    Raises: CommandError.
    """
    from prefmix.mixing.checkpoints.compatibility import CompatibilityError
    from prefmix.mixing.checkpoints.safe_files import CheckpointFilesError

    try:
        return check_models(config, spec, trust_remote_code=trust_remote_code)
    except (CompatibilityError, CheckpointFilesError) as error:
        raise CommandError(str(error)) from None
