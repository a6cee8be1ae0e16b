"""Checks of what `prefmix serve` was asked to do, made before the engine starts.

Every check ends the start with one sentence, a CommandError, that says how to put it right.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prefmix.mixing.checkpoints.safe_files import CheckpointFilesError
from prefmix.mixing.spec import MixtureSpec
from prefmix.server.auth import admin_tokens, api_keys
from prefmix.server.auth.tokens import Tokens, tokens_from
from prefmix.server.config.errors import CommandError
from prefmix.server.config.prompt_settings import PromptSettings
from prefmix.server.config.serve_config import ServeConfig
from prefmix.server.launch.environment import MOST_SOCKET_CHARS
from prefmix.server.launch.in_process import check_files, check_models
from prefmix.server.launch.security_checks import check_open_address
from prefmix.server.slots.policies_folder import PoliciesFolder, PoliciesFolderError
from prefmix.weights.store.profiles import ProfileSet

if TYPE_CHECKING:
    from prefmix.mixing.checkpoints.compatibility import CheckedMembers

_CONNECT_S = 1.0
"""Time for a process that listens on a Unix socket to be found."""
_PATH = 7
"""Column of a socket's path in /proc/net/unix."""


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


def check_before_vllm(
    config: ServeConfig,
    spec: MixtureSpec,
    passthrough: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    *,
    is_headless: bool = False,
) -> None:
    """Checks what can be checked before vLLM is imported, which takes seconds to a minute: the
    files of keys and tokens, a key for an address that others reach, the members' files.

    Args: is_headless: engines alone, which listen for no client.
    Raises: CommandError.
    """
    keys = tokens_from(environ, api_keys.VARIABLE, default_name="key")
    tokens_from(environ, admin_tokens.VARIABLE, default_name=admin_tokens.DEFAULT_NAME)
    # vLLM's own flags for a key and a socket have many spellings; they are checked once parsed.
    words = [str(word).replace("_", "-") for word in (*passthrough, *config.engine)]
    may_follow = any("api" in word or "ud" in word for word in words)
    if not keys and not environ.get(api_keys.VLLM_VARIABLE) and not may_follow:
        args = Namespace(host=config.host, port=config.port, api_key=None)
        check_open_address(args, allowed=config.allow_no_api_key or is_headless)
    try:
        check_files(config, spec)
    except CheckpointFilesError as error:
        raise CommandError(str(error)) from None


def check_added_policies(config: ServeConfig, profiles: ProfileSet) -> None:
    """Checks that the adapters which the store has for the server's slots are where they were.

    A manifest brings others in the place of those that are not.
    Raises: CommandError naming the policy, and the way out.
    """
    if config.policies_dir is None or config.policies_manifest is not None:
        return
    folder = PoliciesFolder(Path(config.policies_dir))
    for name, policy in profiles.added.items():
        if policy.adapter is None:  # a prompt has no files
            continue
        try:
            folder.unchanged(policy)
        except PoliciesFolderError as error:
            raise CommandError(
                f"{config.weights_store} has the added policy {name!r}, and {error}; or return to "
                f"a version without it by 'prefmix weights rollback --weights-store "
                f"{config.weights_store}'"
            ) from None


def check_socket(args: Namespace) -> None:
    """Checks that vLLM can make its Unix socket, if it is to listen on one.

    Args: args: vLLM's arguments.
    Raises: CommandError.
    """
    if not args.uds:
        return
    path = Path(args.uds)
    if not path.parent.is_dir():
        raise CommandError(f"vLLM's flag --uds: the folder {path.parent} does not exist; make it")
    if len(os.fsencode(path)) > MOST_SOCKET_CHARS:
        raise CommandError(
            f"vLLM's flag --uds: {path} has more than {MOST_SOCKET_CHARS} bytes, the longest path "
            "of a socket; choose a shorter one"
        )
    if path.exists() and not path.is_socket():
        raise CommandError(f"vLLM's flag --uds: {path} exists and is no socket; choose another")
    if path.exists() and _is_in_use(path):
        raise CommandError(
            f"vLLM's flag --uds: another process, or another user, has the socket {path}; end that "
            "process, or choose another path"
        )


@contextmanager
def free_socket(args: Namespace) -> Iterator[None]:
    """Removes the Unix socket of a server that has ended, before the block and after it: vLLM 0.32
    leaves it, and cannot make it anew.

    Args: args: vLLM's arguments.
    """
    _remove_left_socket(args)
    try:
        yield
    finally:
        _remove_left_socket(args)


def _remove_left_socket(args: Namespace) -> None:
    if args.uds and (path := Path(args.uds)).is_socket() and not _is_in_use(path):
        path.unlink(missing_ok=True)


def _is_in_use(path: Path) -> bool:
    """True if a process listens on a Unix socket, or has made it and will listen."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_CONNECT_S)
        try:
            client.connect(str(path))
            return True
        except ConnectionRefusedError:
            pass
        except OSError:  # its queue is full, or it is another user's
            return True
    try:
        rows = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    bound = {each[_PATH] for row in rows if len(each := row.split(maxsplit=_PATH)) > _PATH}
    return not bound.isdisjoint({str(path), str(path.absolute())})


def check_tls(args: Namespace) -> None:
    """Checks that the files of TLS can be read and belong together.

    Args: args: vLLM's arguments.
    Raises: CommandError naming the flag and the file.
    """
    files = {
        "--ssl-certfile": args.ssl_certfile,
        "--ssl-keyfile": args.ssl_keyfile,
        "--ssl-ca-certs": args.ssl_ca_certs,
    }
    for flag, path in files.items():
        if path is None:
            continue
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise CommandError(
                f"vLLM's flag {flag}: cannot read {path}: {error.strerror}"
            ) from None
        if args.ssl_certfile is None:
            raise CommandError(
                f"vLLM's flag {flag} is given without --ssl-certfile, so the server would answer "
                "in plain text; give both or neither",
                exit_code=2,
            )
    if args.ssl_certfile is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pair = f"--ssl-certfile {args.ssl_certfile}"
    pair += f" and --ssl-keyfile {args.ssl_keyfile}" if args.ssl_keyfile else ""
    try:
        # A key with a password would otherwise ask for it on the terminal.
        context.load_cert_chain(args.ssl_certfile, args.ssl_keyfile, password=lambda: "")
    except (ssl.SSLError, ValueError, OSError) as error:
        raise CommandError(
            f"vLLM's flags {pair}: no certificate with its private key can be read there "
            f"({getattr(error, 'reason', None) or error}); give PEM files that belong together, "
            "the key without a password"
        ) from None
    try:
        if args.ssl_ca_certs is not None:
            context.load_verify_locations(args.ssl_ca_certs)
    except (ssl.SSLError, OSError) as error:
        raise CommandError(
            f"vLLM's flag --ssl-ca-certs: {args.ssl_ca_certs} holds no certificates in PEM "
            f"({getattr(error, 'reason', None) or error})"
        ) from None


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


def check_prompts(prompts: PromptSettings, args: Namespace) -> None:
    """Checks that policies' system texts reach the policies, and no log.

    Raises: CommandError.
    """
    refusal = prompts.refusal(logs_requests=args.enable_log_requests)
    if refusal is not None:
        raise CommandError(refusal, exit_code=2 if prompts.has_chat_template else 1)


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
) -> CheckedMembers:
    """Checks that the members' files can be loaded safely and mixed.

    Raises: CommandError.
    """
    from prefmix.mixing.checkpoints.compatibility import CompatibilityError

    try:
        return check_models(config, spec, trust_remote_code=trust_remote_code)
    except (CompatibilityError, CheckpointFilesError) as error:
        raise CommandError(str(error)) from None
