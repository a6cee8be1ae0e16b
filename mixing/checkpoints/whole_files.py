"""Checks that the files of checkpoints and adapters are there, readable and whole.

The engine finds a damaged file only after a minute, in a process far away, and says neither whose
it is nor which one. These checks read no parameters, only the heads of the files, and need neither
torch nor vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefmix.mixing.checkpoints.file_names import (
    ADAPTER_CONFIG,
    ADAPTER_PARAMETERS,
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    PARAMETERS,
)
from prefmix.mixing.checkpoints.safe_files import CheckpointFilesError, cached_folder
from prefmix.mixing.spec import MixtureSpec, Policy

_JSON_FILES = (
    "added_tokens.json",
    GENERATION_CONFIG,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
"""JSON objects that are read if they exist."""

_OTHER_FILES = ("merges.txt", "tokenizer.model")
_PLAIN_NUMBERS = ("F64", "F32", "F16", "BF16")
_ROW_PER_TOKEN = (
    ".embed_tokens.weight",
    ".wte.weight",
    ".word_embeddings.weight",
    ".embed_in.weight",
)
"""Ends of the names of tensors with one row for each token of the vocabulary."""

_COPY_AGAIN = "copy or download it again"


def check_whole_files(spec: MixtureSpec) -> None:
    """Checks the files of all members that are on this machine.

    Raises: CheckpointFilesError naming the policy, the file and what to do.
    """
    for policy in spec.checkpoints:
        folder = cached_folder(policy.model, policy.revision)
        if folder is not None:
            _check_checkpoint(policy, folder)
    for policy in spec.adapters:
        folder = Path(policy.model).expanduser()
        if folder.is_dir():
            _check_adapter(policy, folder)


def _check_checkpoint(policy: Policy, folder: Path) -> None:
    config = _json_object(policy, folder / CONFIG)
    if config is None:
        is_adapter = (folder / ADAPTER_CONFIG).is_file()
        remedy = (
            "it is an adapter: serve it with --adapter and --base"
            if is_adapter
            else "give a folder in Hugging Face layout"
        )
        raise _error(policy, folder / CONFIG, f"the file is missing; {remedy}")
    adapter = folder / ADAPTER_PARAMETERS
    if adapter.is_file():
        raise _error(
            policy,
            adapter,
            "the folder holds an adapter: serve it with --adapter and --base, or merge it into the "
            "base (peft: merge_and_unload); if its model.safetensors is meant, remove the adapter",
        )
    for name in _JSON_FILES:
        _json_object(policy, folder / name)
    for name in _OTHER_FILES:
        _readable(policy, folder / name)
    _check_index(policy, folder)
    is_listed = (folder / INDEX).is_file()
    _check_choice(policy, folder, is_listed)
    file_of: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        shapes = _shapes(policy, path)
        _check_rows(policy, path, shapes, config)
        twice = next((name for name in shapes if name in file_of), None)
        # With an index, vLLM reads the files that it names and no other.
        if twice is not None and not is_listed:
            raise _error(
                policy,
                path,
                f"it holds {twice}, as {file_of[twice].name} does, and vLLM would read both; "
                "remove the file that does not belong to this checkpoint",
            )
        file_of |= dict.fromkeys(shapes, path)


def _check_choice(policy: Policy, folder: Path, is_listed: bool) -> None:
    """Checks that vLLM and transformers read the same files of a checkpoint."""
    whole, native = folder / PARAMETERS, native_files(folder)
    if is_listed and whole.is_file() and whole.name not in _listed(policy, folder):
        raise _error(
            policy,
            whole,
            f"{INDEX} names other files, which vLLM would read, but transformers reads this one; "
            "remove the one of the two that does not belong to this checkpoint",
        )
    if native and not is_listed and len(native) < len(list(folder.glob("*.safetensors"))):
        raise _error(
            policy,
            native[0],
            "vLLM would read this file and transformers the others; remove what does not belong "
            "to this checkpoint",
        )


def native_files(folder: Path) -> list[Path]:
    """The files in Mistral's own format, which vLLM prefers to those of transformers."""
    return sorted(folder.glob("consolidated*.safetensors"))


def _check_adapter(policy: Policy, folder: Path) -> None:
    """A missing file is left to prefmix.mixing.checkpoints.lora, which says what it should be."""
    _json_object(policy, folder / ADAPTER_CONFIG)
    path = folder / ADAPTER_PARAMETERS
    if path.exists():
        _shapes(policy, path)


def _check_index(policy: Policy, folder: Path) -> None:
    """Checks that every file named in the index of a checkpoint in parts is there."""
    path = folder / INDEX
    missing = sorted(name for name in _listed(policy, folder) if not (folder / name).is_file())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise _error(
            policy,
            path,
            f"it names {missing[0]}{more}, which the folder does not have; copy the whole "
            "checkpoint there",
        )


def _listed(policy: Policy, folder: Path) -> set[str]:
    """The names of the files in the index of a checkpoint in parts; none without an index."""
    path = folder / INDEX
    index = _json_object(policy, path)
    if index is None:
        return set()
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise _error(policy, path, f"it has no weight_map of tensors and files; {_COPY_AGAIN}")
    return set(files.values())


def _shapes(policy: Policy, path: Path) -> dict[str, tuple[str, list[int]]]:
    """(kind of number, shape) of each tensor of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    _readable(policy, path)
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (each.get_dtype(), each.get_shape()) for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise _error(
            policy, path, f"the file is cut short or damaged ({_line(error)}); {_COPY_AGAIN}"
        ) from None


def _check_rows(
    policy: Policy,
    path: Path,
    shapes: Mapping[str, tuple[str, list[int]]],
    config: Mapping[str, Any],
) -> None:
    """Checks that the tokens' embeddings have as many rows as the config says."""
    sizes = _vocabulary_sizes(config)
    for name, (kind, shape) in shapes.items():
        if not sizes or not f".{name}".endswith(_ROW_PER_TOKEN) or kind not in _PLAIN_NUMBERS:
            continue
        if len(shape) == 2 and shape[0] not in sizes.values():
            field, size = next(iter(sizes.items()))
            raise _error(
                policy,
                path.parent / CONFIG,
                f"{field} is {size}, but {name} in {path.name} has {shape[0]} rows; config and "
                "parameters belong to different models: copy both from one",
            )


def _vocabulary_sizes(config: Mapping[str, Any], prefix: str = "") -> dict[str, int]:
    """The sizes of vocabularies that a config names, those of its parts included."""
    sizes: dict[str, int] = {}
    for key, value in config.items():
        if isinstance(value, dict) and not prefix:
            sizes |= _vocabulary_sizes(value, f"{key}.")
        elif "vocab_size" in key and isinstance(value, int):
            sizes[prefix + key] = value
    return sizes


def _json_object(policy: Policy, path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if there is none."""
    content = _readable(policy, path)
    if content is None:
        return None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _error(
            policy, path, f"it is not JSON, or cut short ({_line(error)}); {_COPY_AGAIN}"
        ) from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise _error(policy, path, f"it holds a {kind}, expected an object; {_COPY_AGAIN}")
    return value


def _readable(policy: Policy, path: Path) -> bytes | None:
    """The content of a small file, or the first byte of a file of parameters; None without one."""
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise _error(policy, path, "it is not a file")
        with path.open("rb") as file:
            content = file.read(1 if path.suffix == ".safetensors" else -1)
    except OSError as error:
        raise _error(
            policy, path, f"it cannot be read ({error.strerror}); let this user read it"
        ) from None
    if not content:
        raise _error(policy, path, f"the file is empty; {_COPY_AGAIN}")
    return content


def _error(policy: Policy, path: Path, what: str) -> CheckpointFilesError:
    return CheckpointFilesError(f"policy {policy.name!r}: {path}: {what}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
