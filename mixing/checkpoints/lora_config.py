"""Reads the `adapter_config.json` of a LoRA adapter as PEFT 0.21 does, or refuses it.

The meaning of most entries (rsLoRA, ranks and alphas by layer, what is unsupported) is vLLM's own
reading of it, vllm.lora.peft_helper.PEFTHelper (vLLM 0.32). The checks here are of what PEFTHelper
takes as it comes: types, variants of LoRA that it does not know, and layers that PEFT would leave
out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefmix.mixing.checkpoints.file_names import ADAPTER_CONFIG, CONFIG

_MERGE = "merge it into the base (peft: merge_and_unload) and serve full checkpoints with --policy"


class AdapterError(ValueError):
    """An adapter that cannot be read or cannot share a trunk."""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    try:
        return (
            isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
        )
    except OverflowError:  # a whole number that no float can hold
        return False


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_name_or_names(value: object) -> bool:
    return value is None or isinstance(value, str) or _are_names(value)


_FLAG = (_is_flag, "true or false")
_NAMES = (_is_name_or_names, "a string, a list of strings or null")

_TYPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "r": (lambda value: _is_whole(value) and value > 0, "a whole number above 0"),
    "lora_alpha": (_is_number, "a number"),
    "use_rslora": _FLAG,
    "use_dora": _FLAG,
    "use_qalora": _FLAG,
    "lora_bias": _FLAG,
    "bias": (lambda value: value in ("none", "all", "lora_only"), "'none'"),
    "init_lora_weights": (
        lambda value: _is_flag(value) or isinstance(value, str),
        "true, false or a name",
    ),
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "layers_pattern": _NAMES,
    "target_parameters": (
        lambda value: value is None or _are_names(value),
        "a list of strings or null",
    ),
    "layers_to_transform": (
        lambda value: (
            value is None
            or _is_whole(value)
            or (isinstance(value, list) and all(map(_is_whole, value)))
        ),
        "a whole number, a list of them or null",
    ),
    "rank_pattern": (
        lambda value: (
            value is None
            or (
                isinstance(value, dict)
                and all(_is_whole(each) and each > 0 for each in value.values())
            )
        ),
        "an object of whole numbers above 0",
    ),
    "alpha_pattern": (
        lambda value: (
            value is None or (isinstance(value, dict) and all(map(_is_number, value.values())))
        ),
        "an object of numbers",
    ),
}
"""The entries that the update depends on: a check, and what is allowed in words."""

_VARIANTS = (
    "arrow_config",
    "kasa_config",
    "megatron_config",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "velora_config",
)
"""Entries that make another method than LoRA of it, beside those that PEFTHelper knows. Even an
empty object does: PEFT takes it for the variant with its defaults."""

HARMLESS = frozenset(
    {
        # What an adapter is and where it is from.
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "task_type",
        # PEFT takes the orientation of a matrix from the layer's class, whatever this says.
        "fan_in_fan_out",
        # Only training reads them.
        "corda_config",
        "eva_config",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        # They count with another entry only, which is refused.
        "ensure_weight_tying",
        "megatron_core",
        "modules_to_save",
        "qalora_group_size",
        "runtime_config",
        # PEFTHelper refuses them.
        "alora_invocation_tokens",
        "layer_replication",
    }
)
"""Entries of PEFT's that need no check here."""


def read_config(folder: Path, wrong: str) -> tuple[Any, dict[str, Any]]:
    """Reads and checks an adapter's config.

    Args:
      wrong: the beginning of a sentence about the adapter.
    Returns: vLLM's PEFTHelper, and the entries.
    Raises: AdapterError.
    """
    from vllm.lora.peft_helper import PEFTHelper

    if not (folder / ADAPTER_CONFIG).is_file():
        remedy = (
            "it is a full checkpoint: serve it with --policy, without --base"
            if (folder / CONFIG).is_file()
            else "give a folder as written by peft's save_pretrained"
        )
        raise AdapterError(f"{wrong}has no {ADAPTER_CONFIG}; {remedy}")
    unreadable = f"{wrong}has an unreadable {ADAPTER_CONFIG}: "
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{unreadable}{error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{unreadable}it is a {type(config).__name__}, no JSON object")
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise AdapterError(
            f"{wrong}is of type {kind!r:.80}; only LoRA (peft_type 'LORA') can share a trunk: "
            "merge it into the base, if it can be (peft: merge_and_unload), and serve full "
            "checkpoints with --policy"
        )
    for name, (is_right, allowed) in _TYPES.items():
        if name in config and not is_right(config[name]):
            raise AdapterError(
                f"{unreadable}{name} is {config[name]!r:.80}, expected {allowed}, as PEFT writes it"
            )
    if config.get("target_modules", ()) is None and not config.get("target_parameters"):
        raise AdapterError(
            f"{unreadable}target_modules is null, which PEFT takes for another list with each kind "
            "of model; name the layers that the adapter changes"
        )
    try:
        helper = PEFTHelper.from_dict(config)
        for pattern in patterns(config):
            re.compile(pattern)
        problems = helper._validate_features()
    except (ValueError, TypeError, KeyError, AttributeError, re.error) as error:
        raise AdapterError(f"{unreadable}{error}") from error
    if helper.bias != "none":
        problems.append(f"bias is {helper.bias!r}.")
    problems.extend(f"{name} is {config[name]!r:.80}." for name in _other_methods(config))
    if problems:
        raise AdapterError(
            f"{wrong}uses what a shared trunk cannot ({' '.join(problems)}); {_MERGE}"
        )
    return helper, config


def patterns(config: Mapping[str, Any]) -> Iterator[str]:
    """The regular expressions that choose layers."""
    yield from config.get("rank_pattern") or ()
    yield from config.get("alpha_pattern") or ()
    for name in ("target_modules", "exclude_modules"):
        if isinstance(config.get(name), str):
            yield config[name]
    given = config.get("layers_pattern") or ()
    yield from [given] if isinstance(given, str) else given


def _other_methods(config: Mapping[str, Any]) -> Iterator[str]:
    """The entries in force that make another method of LoRA, those of a later PEFT included."""
    known = _TYPES.keys() | HARMLESS
    for name, value in config.items():
        is_method = name.startswith(("use_", "enable_")) or name.endswith("_config")
        is_other = name in _VARIANTS or (is_method and name not in known)
        if is_other and (value or value == {}):
            yield name


def unknown_entries(config: Mapping[str, Any]) -> list[str]:
    """The entries in force that PEFT 0.21 does not know, and would leave out with a warning."""
    known = _TYPES.keys() | HARMLESS | set(_VARIANTS)
    return sorted(name for name, value in config.items() if value and name not in known)


def untargeted(config: Mapping[str, Any], modules: Iterable[str]) -> list[str]:
    """The layers, of those that the file has factors of, that PEFT would leave out.

    Source: peft.tuners.tuners_utils.check_target_module_exists (PEFT 0.21).
    """
    return [module for module in modules if not _is_targeted(config, module)]


def _is_targeted(config: Mapping[str, Any], module: str) -> bool:
    for parameter in config.get("target_parameters") or ():
        if f".{module.removesuffix('.base_layer')}".endswith(f".{parameter.rpartition('.')[0]}"):
            return True
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if excluded and _matches(excluded, module):
        return False
    if targets is None or targets == "all-linear":
        return targets is not None
    if isinstance(targets, str) or module in targets:
        return _matches(targets, module)
    return _matches(targets, module) and _is_at_depth(config, module)


def _matches(names: str | list[str], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in names)


def _is_at_depth(config: Mapping[str, Any], module: str) -> bool:
    depths = config.get("layers_to_transform")
    if depths is None or depths == []:
        return True
    given = config.get("layers_pattern") or ()
    patterns = [given] if isinstance(given, str) else given
    rules = [rf"(?:^|.*?\.){each}\.(\d+)\." for each in patterns] or [r".*?\.[^.]*\.(\d+)\."]
    found = next(filter(None, (re.match(rule, module) for rule in rules)), None)
    if found is None:
        return False
    return int(found[1]) in (depths if isinstance(depths, list) else [depths])
