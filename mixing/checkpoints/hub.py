"""Models that come from the hub, which on a machine that cannot reach it are missing folders.

The hub's client tries again for a minute before it says so.
"""

from __future__ import annotations

import difflib
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from prefmix.mixing.checkpoints.safe_files import CheckpointFilesError, cached_folder
from prefmix.mixing.spec import MixtureSpec, Policy

CONNECT_S = 5.0
"""Longest wait for a connection."""

_HUB = "https://huggingface.co"
_VARIABLE = "HF_ENDPOINT"


def check_hub(spec: MixtureSpec) -> None:
    """Checks that the hub can be reached, if a member is neither a folder nor in the hub's cache.

    Raises: CheckpointFilesError naming the member and folders whose names are alike.
    """
    known_by = [(policy, "config.json") for policy in spec.checkpoints]
    known_by += [(policy, "adapter_config.json") for policy in spec.adapters]
    for policy, file in known_by:
        if cached_folder(policy.model, policy.revision, holds=file) is not None:
            continue
        reason = _unreachable()
        if reason is None:
            return
        close = _folders_like(policy.model)
        hint = f" (did you mean {close!r}?)" if close is not None else ""
        raise CheckpointFilesError(
            f"policy {policy.name!r}: {policy.model!r:.200} is no folder here{hint}, is not in the "
            f"hub's cache, and the hub cannot be asked: {reason}; name a folder, or copy the model "
            "to this machine first"
        )


def fetched_folder(
    policy: Policy,
    *,
    holds: str,
    refuse: type[ValueError],
    patterns: Sequence[str] | None = None,
) -> Path:
    """The folder with a policy's files; those of a hub id are fetched unless they are cached.

    Args:
      holds: the files that a folder must have, for the error.
      refuse: the error's class.
      patterns: the files to fetch; None means all.
    Raises: `refuse` if there is no such folder, or the hub does not give it.
    """
    path = Path(policy.model).expanduser()
    if path.is_dir():
        return path
    remedy = f"give a folder with {holds}, or a hub id"
    if path.is_absolute():
        raise refuse(f"policy {policy.name!r}: there is no folder {policy.model!r}; {remedy}")
    from huggingface_hub import snapshot_download

    allowed = None if patterns is None else list(patterns)
    try:
        return Path(
            snapshot_download(policy.model, revision=policy.revision, allow_patterns=allowed)
        )
    except (OSError, ValueError) as error:  # the hub's own errors are among them
        raise refuse(
            f"policy {policy.name!r}: cannot fetch {policy.model!r} ({first_line(error)}); "
            f"{remedy} that can be reached"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _unreachable() -> str | None:
    """The reason why the hub cannot be reached; None if it can, or if a proxy decides."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "ON", "YES"):
        return "HF_HUB_OFFLINE is set"
    url = urllib.parse.urlsplit(os.environ.get(_VARIABLE) or _HUB)
    if url.hostname is None or url.scheme in urllib.request.getproxies():
        return None
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname, port), timeout=CONNECT_S).close()
    except OSError as error:
        return f"{url.hostname}: {error.strerror or error}"
    return None


def _folders_like(model: str) -> str | None:
    """A folder below the working directory, two levels deep at most, with a similar name."""
    try:
        first = [each for each in Path().iterdir() if each.is_dir()]
        near = difflib.get_close_matches(model.split("/")[0], [each.name for each in first], n=3)
        names = [str(each) for parent in near for each in Path(parent).iterdir() if each.is_dir()]
    except OSError:
        return None
    found = difflib.get_close_matches(model, [*(each.name for each in first), *names], n=1)
    return found[0] if found else None
