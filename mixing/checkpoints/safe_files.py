"""Refuses checkpoints whose parameters are in files that can run code.

A file of pickled tensors (.bin, .pt and the like) is a program: whoever loads it trusts its author
with this machine. The loaders read safetensors only. The checks here refuse other files before the
start, and name the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec, Policy

_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pickle", ".pkl", ".ckpt", ".msgpack", ".h5")
# Files that trainers leave beside a checkpoint and that nothing here reads.
_NOT_PARAMETERS = (
    "training_args",
    "optimizer",
    "scheduler",
    "scaler",
    "rng_state",
    "random_states",
)

REMEDY = (
    "convert it (transformers: from_pretrained, then save_pretrained), or trust its author with "
    "this machine by --allow-unsafe-weights"
)


class CheckpointFilesError(ValueError):
    """A checkpoint whose parameters are missing or not in safetensors files."""


def check_safe_files(spec: MixtureSpec) -> None:
    """Checks that each member has parameters, and that none of its files can run code.

    Adapters need no check: prefmix.mixing.checkpoints.lora reads safetensors only. Nor do hub ids
    that are not in the cache: the loader fetches safetensors only.

    Args:
      spec: the mixture.
    Raises: CheckpointFilesError naming the policy, and the file or the folder without one.
    """
    check_safe_models(spec.checkpoints)


def check_safe_models(policies: Iterable[Policy]) -> None:
    """Checks full checkpoints as `check_safe_files` does."""
    for policy in policies:
        unsafe = unsafe_file(policy.model, policy.revision)
        if unsafe is not None:
            raise CheckpointFilesError(
                f"policy {policy.name!r}: {policy.model!r} has no safetensors file but "
                f"{unsafe.name}, and loading that can run any code; {REMEDY}"
            )
        folder = Path(policy.model).expanduser()
        if folder.is_dir() and not any(folder.glob("*.safetensors")):
            raise CheckpointFilesError(
                f"policy {policy.name!r}: the folder {policy.model!r} has no parameters "
                "(*.safetensors); copy the whole checkpoint there, or name another folder"
            )


def unsafe_file(model: str, revision: str | None = None) -> Path | None:
    """A file that loading the model would have to unpickle; None if there is none.

    Args:
      model: a folder, or a hub id, whose copy in the cache is checked.
      revision: of the hub id.
    """
    folder = cached_folder(model, revision)
    if folder is None or any(folder.glob("*.safetensors")):
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix in _UNSAFE_SUFFIXES)
    return next((path for path in files if not path.name.startswith(_NOT_PARAMETERS)), None)


def cached_folder(model: str, revision: str | None, *, holds: str = "config.json") -> Path | None:
    """The folder of a local model, or of a hub id in the hub's cache; None if it is not cached.

    Args: holds: the file by which it is known that a hub id is cached.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(model, holds, revision=revision)
    except HFValidationError:  # not a hub id either; the loader reports that
        return None
    return Path(config).parent if isinstance(config, str) else None
