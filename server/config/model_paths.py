"""The models that a configuration or a flag names: local folders, made absolute, or hub ids."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from prefmix.server.config.errors import ConfigError

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)


def policies_from_flags(flag: str, items: Sequence[str]) -> dict[str, dict[str, str]]:
    """Reads `NAME=MODEL` flags into a policy table; paths are relative to the working directory.

    Raises: ConfigError for an item without "=", a name given twice or a folder that is missing.
    """
    table: dict[str, str] = {}
    for item in items:
        name, equals, model = item.partition("=")
        if not (name and equals and model):
            raise ConfigError(f"{flag} is {item!r}; expected NAME=MODEL, such as helpful=./helpful")
        if name in table:
            raise ConfigError(f"{flag} names {name!r} twice; give each policy its own name")
        table[name] = model
    return {
        name: {"model": resolve_model(model, folder=Path.cwd(), where=f"{flag} {name}")}
        for name, model in table.items()
    }


def resolve_model(model: str, *, folder: Path, where: str) -> str:
    """Makes a local folder's path absolute; leaves a hub id unchanged.

    A string that begins with "/", "./", "../" or "~" names a folder, which must exist. Any other
    string names a folder if `folder` contains one of that name, else a hub id, which has the form
    `name` or `organisation/name`.

    Args:
      model: a path or a hub id.
      folder: the folder that relative paths begin at.
      where: the flag or the place in the file, for the message.
    Raises: ConfigError for a folder that is missing or cannot be read.
    """
    if not model:
        return model  # Policy refuses an empty model and names the policy
    path = folder / expanded(model, where=where)
    explicit = model.startswith(("/", "./", "../", "~")) or model in (".", "..")
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            return str(path.resolve())
        wrong = "is not a folder"
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character
        wrong = "does not exist"
    except OSError as error:
        explicit = True
        wrong = f"cannot be read ({error.strerror})"
    if explicit or not _HUB_ID.fullmatch(model):
        raise ConfigError(
            f"{where}: {path} {wrong}; "
            "give a folder with a config and safetensors files, or a hub id"
        )
    return model


def expanded(path: str | PathLike[str], *, where: str | PathLike[str]) -> Path:
    """Replaces "~" or "~user" at the beginning of a path by the home folder.

    Raises: ConfigError if the system knows no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{where}: the home folder that {os.fspath(path)!r} begins with is not known; "
            "give the whole path"
        ) from None


def resolve_models(table: Mapping[Any, Any], *, folder: Path, where: Path) -> dict[Any, Any]:
    """Resolves the model or adapter of each entry of a policy table.

    Entries of a wrong shape stay as they are.
    Raises: ConfigError for a folder that is missing.
    """
    resolved: dict[Any, Any] = {}
    for name, value in table.items():
        entry: Any = model_entry(value)
        if isinstance(entry, dict):
            paths = {key: entry[key] for key in ("model", "adapter") if key in entry}
            for key, path in paths.items():
                if isinstance(path, str):
                    model = resolve_model(path, folder=folder, where=f"{where}: {name}")
                    entry = {**entry, key: model}
        resolved[name] = entry
    return resolved


def model_entry(value: object) -> object:
    """Writes the short form `helpful: path` out as `helpful: {model: path}`, nothing as `{}`."""
    return {} if value is None else {"model": value} if isinstance(value, str) else value
