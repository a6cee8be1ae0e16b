"""The files that training may load: safetensors, unless the user allows others."""

from __future__ import annotations

from typing import Any

from prefmix.mixing.checkpoints.safe_files import REMEDY, unsafe_file
from prefmix.policies.errors import TrainError


def check_safe(model: str, what: str, *, allow_unsafe_weights: bool) -> None:
    """Raises TrainError if loading a model means unpickling a file.

    Args:
      model: a folder or hub id.
      what: name of the model's role, for the message.
      allow_unsafe_weights: true if the user allowed unpickling.
    """
    unsafe = None if allow_unsafe_weights else unsafe_file(model)
    if unsafe is not None:
        raise TrainError(
            f"the {what} {model!r} has no safetensors file but {unsafe.name}, and loading that can "
            f"run any code; {REMEDY}"
        )


def loading(allow_unsafe_weights: bool) -> dict[str, Any]:
    """Arguments of transformers' `from_pretrained`: safetensors only, no code of the model."""
    return {
        "use_safetensors": None if allow_unsafe_weights else True,
        "trust_remote_code": False,
    }
