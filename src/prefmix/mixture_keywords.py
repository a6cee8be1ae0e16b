"""Turns the keywords of `Mixture` into a checked configuration, as the server does with its flags.

A keyword is a key of the configuration file or an argument of vLLM's engine. It overrides the
file's value. Every refusal is a ConfigError in the server's words.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from prefmix.server.config.config_file import load_config
from prefmix.server.config.errors import CommandError, ConfigError
from prefmix.server.config.model_paths import expanded, resolve_model
from prefmix.server.config.serve_config import ServeConfig
from prefmix.weights.store.store import WeightsStore

if TYPE_CHECKING:
    from prefmix.mixing.spec import MixtureSpec
    from prefmix.weights.store.profiles import ProfileSet

MODEL_TABLES = ("policies", "adapters", "reference")
"""Keywords that map names to models."""

KEYWORDS = (
    *("config", "policies", "base", "adapters", "reference", "weight_space", "mixing"),
    *("vocabulary", "defaults_from"),
    *("systems", "request_prompts"),
    *("profiles", "default_profile", "weights_store"),
    *("allow_unsafe_weights", "allow_unsafe_engine_flags"),
)
"""The keywords of `Mixture` that are not vLLM's."""

FRONT_END_KEYWORDS = ("chat_template",)
"""Arguments of `vllm.LLM` that its engine does not take."""

_PLAIN = (str, bool, int, float)


@dataclass(frozen=True, kw_only=True)
class Described:
    """A mixture as the keywords describe it; its models have not been checked yet."""

    config: ServeConfig
    spec: MixtureSpec
    profiles: ProfileSet


def describe(given: Mapping[str, Any]) -> Described:
    """Reads the configuration file, if one is given, and puts the keywords on top.

    Args:
      given: the keywords of KEYWORDS; None counts as not given.
    Raises: ConfigError, or StoreError for a store that cannot be read.
    """
    overrides = {name: value for name, value in given.items() if value is not None}
    path = overrides.pop("config", None)
    for table in MODEL_TABLES:
        if isinstance(overrides.get(table), Mapping):
            overrides[table] = {
                name: _model(entry, where=f"{table} {name}")
                for name, entry in overrides[table].items()
            }
    if "base" in overrides:
        overrides["base"] = _model(overrides["base"], where="base")
    if isinstance(overrides.get("profiles"), Mapping):
        overrides["profiles"] = {
            name: dict(weights) if isinstance(weights, Mapping) else weights
            for name, weights in overrides["profiles"].items()
        }
    if isinstance(overrides.get("systems"), Mapping):
        overrides["systems"] = dict(overrides["systems"])
    if "weights_store" in overrides:
        overrides["weights_store"] = os.fspath(
            expanded(overrides["weights_store"], where="weights_store")
        )
    config = load_config(None if path is None else Path(path), overrides)
    spec = config.spec()
    return Described(config=config, spec=spec, profiles=_profiles(config, spec, overrides))


def _profiles(config: ServeConfig, spec: MixtureSpec, overrides: Mapping[str, Any]) -> ProfileSet:
    """The store's profiles if there is a store, else those of `profiles`.

    A store that only the configuration file names need not exist yet.
    """
    if config.weights_store is None:
        return config.profile_set(spec)
    store = WeightsStore(config.weights_store, spec=spec)
    if "weights_store" in overrides or store.path.exists():
        return store.read()
    return config.profile_set(spec)


def _model(entry: Any, *, where: str) -> Any:
    """An entry of a model table with its folder's full path; a wrong shape is refused later."""
    if isinstance(entry, Mapping):
        inner = {"model": _model(entry["model"], where=where)["model"]} if "model" in entry else {}
        return {**entry, **inner}
    if isinstance(entry, PurePath):
        # A path object means a folder, never a hub id.
        entry = os.path.join(os.curdir, expanded(entry, where=where))
    if isinstance(entry, str):
        return {"model": resolve_model(entry, folder=Path.cwd(), where=where)}
    return {"model": entry}


def engine_arguments(
    described: Described, given: Mapping[str, Any]
) -> tuple[Namespace, dict[str, Any]]:
    """vLLM's arguments from the file's `engine:` and the keywords. Imports vLLM.

    Returns: (the result of `build_arguments`, arguments that no command line can carry).
    Raises: ConfigError for a value that is refused.
    """
    from prefmix.server.launch.engine_args import build_arguments
    from prefmix.server.launch.engine_flags import check_flags
    from prefmix.server.launch.mixture_flags import check_mixture_flags

    words = {
        key.replace("-", "_") if isinstance(key, str) else key: value
        for key, value in described.config.engine.items()
    }
    objects: dict[str, Any] = {}
    for name, value in given.items():
        plain = _plain(value)
        words.pop(name, None)
        if plain is not None:
            words[name] = plain
        elif value is not None:  # None is vLLM's default
            objects[name] = value
    if "hf_overrides" in objects:
        raise ConfigError("hf_overrides is no mapping; a mixture takes no function there")
    config = described.config.model_copy(update={"engine": words})
    try:
        if not config.allow_unsafe_engine_flags:
            check_flags(objects, {})
        check_mixture_flags(objects, {})
        return build_arguments(config, described.spec, ()), objects
    except CommandError as error:
        raise ConfigError(str(error)) from None


def _plain(value: object) -> Any | None:
    """The value as YAML would hold it; None if YAML cannot."""
    import torch

    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(item) for item in value]
        return None if None in items else items
    if isinstance(value, Mapping):
        entries = {key: None if item is None else _plain(item) for key, item in value.items()}
        lost = any(entries[key] is None and item is not None for key, item in value.items())
        return None if lost else entries
    return None


def check_keywords(given: Mapping[str, Any]) -> None:
    """Raises TypeError for the first keyword that is no argument of vLLM's engine. Imports vLLM."""
    from vllm.engine.arg_utils import EngineArgs

    known = [field.name for field in dataclasses.fields(EngineArgs) if field.name[0] != "_"]
    known += [*KEYWORDS, *FRONT_END_KEYWORDS]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise TypeError(
                f"unknown keyword {name!r}{hint}; a Mixture takes {', '.join(KEYWORDS)} and the "
                "arguments of vLLM's engine"
            )
