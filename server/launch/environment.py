"""Environment variables for vLLM: defaults for those that the user left unset."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from prefmix.mixing.run_folder import VARIABLE as RUN_FOLDER
from prefmix.server.config.errors import CommandError
from prefmix.server.traffic.connections import KEEP_ALIVE_S

PLUGIN = "prefmix"
LOG_LEVEL = "PREFMIX_LOG_LEVEL"
LOG_LEVELS = ("warning", "info", "debug")

_SOCKET_NAME_CHARS = 37
"""A slash and the random name of a socket of vLLM."""

MOST_SOCKET_CHARS = 107
"""Longest path of a socket on Linux."""

_GENERAL_GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
_OWN_ENTRY_POINTS = ("vllm.general_plugins", "vllm.endpoint_plugins")


def log_level(environ: MutableMapping[str, str] = os.environ) -> str:
    """The log level that PREFMIX_LOG_LEVEL names; `warning` if it is not set.

    Raises: CommandError for an unknown level.
    """
    level = environ.get(LOG_LEVEL, "warning").lower()
    if level not in LOG_LEVELS:
        raise CommandError(
            f"{LOG_LEVEL} is {level!r}; allowed: {', '.join(LOG_LEVELS)}", exit_code=2
        )
    return level


def set_logging(environ: MutableMapping[str, str] = os.environ) -> None:
    """Sends vLLM's log to stderr, by default warnings only. Call before importing vLLM."""
    environ.setdefault("VLLM_LOGGING_LEVEL", log_level(environ).upper())
    environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


def set_keep_alive(environ: MutableMapping[str, str] = os.environ) -> None:
    """Keeps connections open between requests for KEEP_ALIVE_S; vLLM's default is 5 s."""
    environ.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", str(KEEP_ALIVE_S))


def set_trusted_proxies(
    proxies: Sequence[str], environ: MutableMapping[str, str] = os.environ
) -> None:
    """Makes uvicorn believe the X-Forwarded fields of these proxies, not of every local client.

    Without any, a list in uvicorn's own variable stays as it is.
    """
    if proxies:
        environ["FORWARDED_ALLOW_IPS"] = ",".join(proxies)
    else:
        environ.setdefault("FORWARDED_ALLOW_IPS", "")


def set_safe_path(environ: MutableMapping[str, str] = os.environ) -> None:
    """Keeps the working directory out of the children's `sys.path`.

    vLLM inspects a new model in a child (`python -m vllm...`), where a user's torch.py or vllm.py
    would be taken for the package.
    """
    environ.setdefault("PYTHONSAFEPATH", "1")


def set_no_telemetry(environ: MutableMapping[str, str] = os.environ) -> None:
    """Switches off the usage reports that vLLM and the hub's client send to their makers."""
    environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def set_run_folder(folder: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Puts the sockets of vLLM's processes, and their record of shared memory, into a folder."""
    environ[RUN_FOLDER] = str(folder)
    if len(str(folder)) + _SOCKET_NAME_CHARS <= MOST_SOCKET_CHARS:
        environ.setdefault("VLLM_RPC_BASE_PATH", str(folder))


def set_plugins(environ: MutableMapping[str, str] = os.environ) -> None:
    """Names this package in VLLM_PLUGINS without switching other plugins off.

    vLLM loads an endpoint plugin only if the variable names it. Once the variable is set, vLLM
    loads only the plugins that it names. So an unset variable becomes the list of every plugin
    that would have loaded.
    """
    given = environ.get("VLLM_PLUGINS")
    names = _installed_plugins() if given is None else given.split(",")
    environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*filter(None, names), PLUGIN]))


def check_entry_points() -> None:
    """Checks that vLLM will find both plugins, and that both can be imported.

    Raises: CommandError naming the group and the cause.
    """
    for group in _OWN_ENTRY_POINTS:
        point = next(_named(entry_points(group=group)), None)
        if point is None:
            raise CommandError(
                f"vLLM would not find this package: it declares no {PLUGIN!r} in the entry point "
                f"group {group}; install it with 'pip install .' (or -e .) first"
            )
        try:
            point.load()
        except Exception as error:  # an import may raise anything, and its text is the message
            raise CommandError(f"the plugin {point.value} cannot be imported: {error}") from error


def set_cpu_defaults(environ: MutableMapping[str, str], *, kv_cache_bytes: int | None) -> list[str]:
    """Sets the CPU backend's defaults; returns a line to print for each one that a user notices.

    Args:
      environ: the environment to change.
      kv_cache_bytes: `--kv-cache-memory-bytes`, None if not given.
    """
    # On CPU, ahead-of-time artifacts are written but never loaded again: they only cost time.
    environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
    if kv_cache_bytes is not None or "VLLM_CPU_KVCACHE_SPACE" in environ:
        return []
    # Without a size, vLLM takes 92 % of the memory and refuses to start if less is free.
    environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    return ["on CPU the KV cache takes 1 GiB; VLLM_CPU_KVCACHE_SPACE=N (GiB) changes that"]


def _installed_plugins() -> list[str]:
    return [point.name for group in _GENERAL_GROUPS for point in entry_points(group=group)]


def _named(points: Iterable[EntryPoint]) -> Iterator[EntryPoint]:
    return (point for point in points if point.name == PLUGIN)
