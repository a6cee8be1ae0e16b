"""Reading of a configuration: a YAML file, overridden by flags, checked once.

Every problem is one ConfigError. Its message names the file or flag, the field, the value that came
and the values that are allowed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prefmix.mixing.shown_value import shown
from prefmix.server.config.errors import ConfigError
from prefmix.server.config.model_paths import expanded, resolve_models
from prefmix.server.config.policy_table import BaseEntry, PolicyEntry
from prefmix.server.config.serve_config import ServeConfig
from prefmix.server.config.yaml_file import YamlError, read_yaml

MODEL_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:-]{0,127}")
"""Names that clients put in `model`. They have no "@", which separates the profile."""

_MOST_LISTED = 8
"""Names that a message lists where their list is in the manual, too."""

_FLAGS_ONLY = ("allow_unsafe_weights", "allow_unsafe_engine_flags")
"""Fields by which whoever writes a file could run code on this machine."""


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> ServeConfig:
    """Reads the file, if any, overrides it with the flags and checks the result.

    Args:
      path: the configuration file; None when everything comes from flags.
      overrides: fields given as flags.
    Raises: ConfigError.
    """
    data = {} if path is None else _file_values(path, replaced=overrides)
    if "policies" in overrides and not {"base", "adapters"} & set(overrides):
        data = {key: value for key, value in data.items() if key not in ("base", "adapters")}
    if {"base", "adapters"} & set(overrides) and _has_checkpoints(data.get("policies")):
        del data["policies"]
    try:
        config = ServeConfig.model_validate({**data, **overrides})
    except ValidationError as error:
        raise ConfigError(_sentence(error, path, overrides)) from None
    if not MODEL_NAME_PATTERN.fullmatch(config.name):
        raise ConfigError(
            f"name is {config.name!r}; use 1 to 128 letters, digits or any of _ . / : -, "
            "beginning with a letter or digit ('@' separates the profile)"
        )
    return config


def _file_values(path: Path, *, replaced: Mapping[str, Any]) -> dict[str, Any]:
    """The file's values that no flag replaces; its relative paths begin at the file's folder."""
    data = {key: value for key, value in _read(path).items() if key not in replaced}
    for key in _FLAGS_ONLY:
        if data.get(key, False) is not False:
            raise ConfigError(
                f"{path}: {key} is {shown(data[key])}, but whoever writes this file must not be "
                f"able to run code here; give --{key.replace('_', '-')} on the command line"
            )
    folder = path.resolve().parent
    for table in ("policies", "adapters", "reference"):
        if isinstance(data.get(table), dict):
            data[table] = resolve_models(data[table], folder=folder, where=path)
    if data.get("base") is not None:
        data |= resolve_models({"base": data["base"]}, folder=folder, where=path)
    for key in ("weights_store", "reports_dir", "policies_dir", "policies_manifest"):
        if isinstance(data.get(key), str):
            data[key] = str(folder / expanded(data[key], where=f"{path}: {key}"))
    return data


def _has_checkpoints(table: object) -> bool:
    """True for a table of full checkpoints, which a base replaces."""
    entries = table.values() if isinstance(table, dict) else [{"model": table}]
    return any(isinstance(entry, dict) and entry.get("model") is not None for entry in entries)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_yaml(path)
    except YamlError as error:
        raise ConfigError(str(error)) from None
    for key in data:
        if key not in ServeConfig.model_fields:
            raise ConfigError(f"{path}: {_unknown_key(key, ServeConfig.model_fields)}")
    return data


def _sentence(error: ValidationError, path: Path | None, overrides: Mapping[str, Any]) -> str:
    """Says the first of pydantic's errors in one sentence."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    source = "" if path is None or parts[0] in overrides else f"{path}: "
    if first["type"] == "extra_forbidden":
        entry = BaseEntry if parts[0] == "base" else PolicyEntry
        fields = entry.model_fields if len(parts) > 1 else ServeConfig.model_fields
        inside = ".".join(parts[:-1])
        return f"{source}{inside + ': ' if inside else ''}{_unknown_key(parts[-1], fields)}"
    if first["type"] == "missing":
        return f"{source}{'.'.join(parts)} is missing"
    if parts[-1] == "[key]":
        key = shown(first["input"])
        return f"{source}{parts[0]} has the key {key}; names are strings, so quote it"
    if parts[-1] == "system" or (parts[0] == "systems" and len(parts) > 1):
        return f"{source}{'.'.join(parts)} is {first['msg'].removeprefix('Value error, ')}"
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = expected.replace("a valid dictionary", "a mapping")
    expected = re.sub("a mapping or instance of [A-Za-z]+Entry", "a folder or hub id", expected)
    return f"{source}{'.'.join(parts)} is {shown(first['input'])}, expected {expected}"


def _unknown_key(key: object, allowed: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(key).replace("-", "_"), allowed, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    where = f"allowed: {', '.join(allowed)}"
    if len(allowed) > _MOST_LISTED:
        where = "'prefmix help serve' lists the keys, and vLLM's flags stand under engine:"
    return f"unknown key {shown(key)}{hint}; {where}"
