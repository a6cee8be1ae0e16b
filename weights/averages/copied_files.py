"""The files beside the parameters: config, tokenizer, chat template, defaults of generation.

The config is that of the averaged policies, whose layers the parameters fill. All that is about
text comes from the model that a server takes it from (`MixtureSpec.defaults`).
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from prefmix.mixing.checkpoints.file_names import CONFIG, GENERATION_CONFIG
from prefmix.mixing.shown_value import shown
from prefmix.mixing.spec import Policy
from prefmix.weights.averages.errors import ParameterAverageError

_TEMPLATES = "additional_chat_templates"
_OF_THE_CONFIG = (CONFIG, "configuration_*.py", "modeling_*.py")
_OF_TEXT = (
    *("tokenizer*", "tokenization_*.py", "*.model", "*.tiktoken", "vocab*", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template*", GENERATION_CONFIG),
)
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

_HARMLESS = frozenset(
    {
        *_TOKENS,
        *("_name_or_path", "name_or_path", "transformers_version", "architectures", "auto_map"),
        *("dtype", "torch_dtype", "use_cache", "max_position_embeddings", "use_return_dict"),
        *("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        *(
            "initializer_range",
            "task_specific_params",
            "id2label",
            "label2id",
            "_attn_implementation",
        ),
    }
)
"""Entries of a config that do not change what is computed from a prompt that fits."""


def checked_config(policies: Sequence[Policy], folders: Sequence[Path]) -> dict[str, Any]:
    """The config of policies that are averaged, as the first one's file has it.

    Raises: ParameterAverageError if they compute different functions of their parameters, or if
      their parameters are quantised.
    """
    first, *others = policies
    configs = [_raw(folder) for folder in folders]
    for policy, config in zip(policies, configs, strict=True):
        if config.get("quantization_config"):
            raise ParameterAverageError(
                f"policy {policy.name!r} is quantised, and quantised numbers have no average; "
                "give the checkpoint that it was made from"
            )
    for policy in others:
        if policy.hf_overrides != first.hf_overrides:
            raise ParameterAverageError(
                f"policies {first.name!r} and {policy.name!r} have different hf_overrides, so "
                "their parameters have no average"
            )
    whole = [_completed(folder, config) for folder, config in zip(folders, configs, strict=True)]
    for policy, config in zip(others, whole[1:], strict=True):
        for key, ours, theirs in _differences(whole[0], config):
            raise ParameterAverageError(
                f"policies {first.name!r} and {policy.name!r} differ in {key!r} of config.json "
                f"({shown(ours, 60)} and {shown(theirs, 60)}), so their parameters mean "
                "different things and have no average"
            )
    return configs[0]


def overridden(policy: Policy, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A config with a policy's overrides in it.

    Raises: ParameterAverageError if the overrides would mean something else in the file, where
      transformers derives entries from others.
    """
    overrides = dict(policy.hf_overrides)
    if not overrides:
        return config
    from transformers import AutoConfig

    whole = {**config, **overrides}
    try:
        served = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        written = type(served).from_dict(copy.deepcopy(whole))
        served.update(overrides)
        differing = next(_differences(_plain(served), _plain(written)), None)
    except Exception as error:  # whatever an unknown architecture raises
        differing = (type(error).__name__, None, None)
    if differing is not None:
        raise ParameterAverageError(
            f"the hf_overrides of policy {policy.name!r} cannot be written into config.json, where "
            f"they would change {differing[0]!r} in another way; write them into the policies' own "
            "config.json"
        )
    return whole


def write_config(folder: Path, config: Mapping[str, Any], architecture: Path, text: Path) -> None:
    """Writes the config, with the special tokens of `text`, and copies the code that it names.

    Args:
      folder: the new checkpoint's.
      config: from `checked_config`.
      architecture: the folder that `config` is of.
      text: the folder that tokenizer and end tokens are of.
    """
    for path in _found(architecture, _OF_THE_CONFIG):
        shutil.copyfile(path, folder / path.name)
    source = text / CONFIG
    own = _raw(text) if source.is_file() and not text.samefile(architecture) else {}
    tokens = {key: own[key] for key in _TOKENS if key in own}
    content = json.dumps({**config, **tokens}, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(content + "\n", encoding="utf-8")


def copy_text_files(folder: Path, *sources: Path) -> None:
    """Copies tokenizer, chat template and defaults of generation; a later source prevails.

    Args:
      sources: folders of models. Where a later one has a tokenizer, no file of the tokenizer comes
        from an earlier one.
    """
    for source in sources:
        if any(_found(source, ("tokenizer*", "vocab*", "*.model"))):
            for path in list(_found(folder, _OF_TEXT)):
                if path.name != GENERATION_CONFIG:
                    path.unlink()
            shutil.rmtree(folder / _TEMPLATES, ignore_errors=True)
        for path in _found(source, _OF_TEXT):
            shutil.copyfile(path, folder / path.name)
        if (source / _TEMPLATES).is_dir():
            shutil.copytree(source / _TEMPLATES, folder / _TEMPLATES, dirs_exist_ok=True)


def _found(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    matches = chain.from_iterable(folder.glob(pattern) for pattern in patterns)
    return (path for path in matches if path.is_file())


def _raw(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParameterAverageError(f"{folder / CONFIG} cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise ParameterAverageError(f"{folder / CONFIG} holds no JSON object")
    return config


def _completed(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """The config with the entries that the file leaves to transformers' defaults."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # whatever an unknown architecture raises; then the file alone counts
        return raw
    return _plain(config)


def _plain(config: Any) -> dict[str, Any]:
    return dict(json.loads(config.to_json_string(use_diff=False)))


def _differences(ours: Any, theirs: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (entry, one value, the other value) where two configs differ in what is computed."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            if key not in _HARMLESS:
                yield from _differences(ours.get(key), theirs.get(key), f"{name}.{key}".lstrip("."))
    elif ours != theirs:
        yield name, ours, theirs
