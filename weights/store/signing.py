"""Signatures of versions: their author and time, as `prefmix weights history` shows them."""

from __future__ import annotations

import getpass
import os
from dataclasses import replace
from datetime import UTC, datetime

from prefmix.weights.store.format import MAX_AUTHOR_CHARS
from prefmix.weights.store.profiles import ProfileSet, Signature


def signed(profiles: ProfileSet, *, by: str | None) -> ProfileSet:
    """The set with a signature for its version.

    Args: by: the author's name; None is the user of this process.
    """
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    author = _one_line(_user() if by is None else by)
    return replace(profiles, signature=Signature(version=profiles.version, at=at, by=author))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no variable names it, and it has no entry: a container's user
        return f"uid {os.getuid()}"


def _one_line(name: str) -> str:
    shown = "".join(character if character.isprintable() else "?" for character in name)
    return shown[:MAX_AUTHOR_CHARS]
