"""The layers of a base that slots have room for, and what that room costs.

An adapter may change any linear layer, so slots have room in all that can take one. A layer of vLLM
can hold several of the checkpoint's, such as q, k and v, each of which may have the largest rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prefmix.mixing.checkpoints.safe_files import cached_folder
from prefmix.mixing.parameters.unfilled import USUAL_FUSIONS
from prefmix.mixing.spec import MixtureSpec

_MATRICES = ("weight", "qweight", "weight_packed")
"""Last words of the names of a linear layer's matrix, plain or quantised."""


def slot_parts(base: Any, spec: MixtureSpec) -> list[str]:
    """Names that the checkpoint's linear layers may have; none without slots.

    Args:
      base: vLLM's model.
    Returns: the names in the checkpoint's files first, then those that the model's own layers would
      have there. Some are of no layer.
    """
    if not spec.adapter_slots:
        return []
    return list(dict.fromkeys([*_names_in_files(spec), *_names_in_model(base)]))


def _names_in_files(spec: MixtureSpec) -> Iterator[str]:
    from safetensors import safe_open

    checkpoint = spec.checkpoints[0]
    folder = cached_folder(checkpoint.model, checkpoint.revision)
    for path in sorted(folder.glob("*.safetensors")) if folder is not None else ():
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                stem, _, last = name.rpartition(".")
                if last in _MATRICES and len(file.get_slice(name).get_shape()) == 2:
                    yield stem


def _names_in_model(base: Any) -> Iterator[str]:
    """The names of the model's layers; those of their parts where the model fuses some."""
    fusions = {**USUAL_FUSIONS, **getattr(base, "packed_modules_mapping", {})}
    for name, _ in base.named_modules(remove_duplicate=False):
        stem, dot, last = name.rpartition(".")
        pieces = fusions.get(last, ())
        yield from (f"{stem}{dot}{piece}" for piece in pieces) if len(pieces) > 1 else [name]
