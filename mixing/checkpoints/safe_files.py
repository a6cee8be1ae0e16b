"""Which files a checkpoint's parameters are in: safetensors, or a format that can run code.

A file of pickled tensors (.bin, .pt and the like) is a program; loading it is trusting its author
with this machine. The loaders are told to read safetensors only; what is here says so beforehand,
with names.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec, Policy

_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pickle", ".pkl", ".ckpt", ".msgpack", ".h5")
# What trainers leave beside a checkpoint and nothing here reads.
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
    """A checkpoint whose parameters are not in safetensors files, or not there."""


def check_safe_files(spec: MixtureSpec) -> None:
    """Checks that each member has parameters, and that no file that can run code has to be read.

    Adapters are not looked at: prefmix.mixing.checkpoints.lora reads safetensors only. Hub ids that
    are not in the cache are left to the loader, which fetches safetensors only.

    Args:
      spec: the mixture.
    Raises: CheckpointFilesError naming the policy, and the file or the folder without one.
    """
    check_safe_models(spec.checkpoints)


def check_safe_models(policies: Iterable[Policy]) -> None:
    """`check_safe_files` for full checkpoints alone."""
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
    """A file that would have to be unpickled to load a model; None if there is no need to.

    Args:
      model: a folder, or a hub id, of which the copy in the cache is looked at.
      revision: of the hub id.
    """
    folder = cached_folder(model, revision)
    if folder is None or any(folder.glob("*.safetensors")):
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix in _UNSAFE_SUFFIXES)
    return next((path for path in files if not path.name.startswith(_NOT_PARAMETERS)), None)


def cached_folder(model: str, revision: str | None) -> Path | None:
    """The folder of a local model, or of a hub id in the hub's cache; None if it is not cached."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:  # no hub id either; whoever loads it says so
        return None
    return Path(config).parent if isinstance(config, str) else None
