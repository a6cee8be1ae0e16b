"""Reads LoRA adapters in PEFT's format and checks them before an engine starts.

Formats: `adapter_config.json` (prefmix.mixing.checkpoints.lora_config) and
`adapter_model.safetensors` as written by peft's `save_pretrained`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefmix.mixing.checkpoints.adapter_limits import check_patterns, check_sizes
from prefmix.mixing.checkpoints.file_names import ADAPTER_CONFIG, ADAPTER_PARAMETERS
from prefmix.mixing.checkpoints.hub import fetched_folder
from prefmix.mixing.checkpoints.lora_config import (
    AdapterError,
    patterns,
    read_config,
    unknown_entries,
    untargeted,
)
from prefmix.mixing.checkpoints.stamps import Stamps, stamps_of
from prefmix.mixing.spec import Policy

if TYPE_CHECKING:
    import torch

__all__ = ["Adapter", "AdapterError", "Factors", "read_adapter"]

_TENSOR_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_FILES = (ADAPTER_CONFIG, ADAPTER_PARAMETERS)
_SHARED = ("embed_tokens", "lm_head", "wte", "embed_out")


@dataclass(frozen=True)
class Factors:
    """The low-rank update of one linear layer: W + scaling * B A."""

    lora_a: torch.Tensor
    """[r, in]."""
    lora_b: torch.Tensor
    """[out, r]."""
    scaling: float


@dataclass(frozen=True)
class Adapter:
    """One policy's adapter on disk."""

    name: str
    folder: Path
    ranks: Mapping[str, int]
    """Rank by linear layer of the checkpoint, such as `model.layers.0.self_attn.q_proj`."""
    helper: Any
    unknown: tuple[str, ...] = ()
    """Entries of the config that neither vLLM nor PEFT knows."""
    stamps: Stamps = ()
    """The stamps of its files when the config and the shapes were read."""

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Opens the file and yields a function read(module) -> Factors.

        Raises: AdapterError if the folder has changed since it was checked.
        """
        from safetensors import safe_open

        if stamps_of(self.folder, _FILES) != self.stamps:
            raise AdapterError(
                f"policy {self.name!r}: the files in {str(self.folder)!r} have changed since they "
                "were checked; try again when they are complete"
            )

        with safe_open(self.folder / ADAPTER_PARAMETERS, framework="pt") as file:

            def read(module: str) -> Factors:
                stem = f"base_model.model.{module}.lora_"
                return Factors(
                    lora_a=file.get_tensor(f"{stem}A.weight"),
                    lora_b=file.get_tensor(f"{stem}B.weight"),
                    scaling=self.helper.get_rank_and_scaling(module)[1],
                )

            yield read

    @property
    def is_zero(self) -> bool:
        """True if every lora_B is zero, as before any training: the policy is its base."""
        with self.opened() as read:
            return not any(bool(read(module).lora_b.any()) for module in self.ranks)


def read_adapter(policy: Policy) -> Adapter:
    """Reads an adapter's config and the shapes of its tensors.

    Args:
      policy: its `model` is a local folder or a hub id.
    Raises: AdapterError naming the policy, the file and what to do.
    """
    folder = fetched_folder(policy, holds=ADAPTER_CONFIG, refuse=AdapterError)
    return _read(policy, folder, stamps_of(folder, _FILES))


@functools.lru_cache(maxsize=64)
def _read(policy: Policy, folder: Path, stamps: Stamps) -> Adapter:
    from safetensors import SafetensorError, safe_open

    wrong = f"policy {policy.name!r}: the adapter in {str(folder)!r} "
    check_sizes(folder, wrong)
    helper, config = read_config(folder, wrong)
    path = folder / ADAPTER_PARAMETERS
    if not path.is_file():
        others = [file.name for file in folder.glob("adapter_model.*")]
        came = f" (there is {others[0]})" if others else ""
        remedy = "save it with peft's save_pretrained(..., safe_serialization=True)"
        if not others and any(folder.glob("*.safetensors")):
            remedy = "it is a full checkpoint: serve it with --policy, without --base"
        raise AdapterError(f"{wrong}has no {ADAPTER_PARAMETERS}{came}; {remedy}")
    shapes: dict[tuple[str, str], list[int]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                match = _TENSOR_NAME.fullmatch(key)
                module = match["module"] if match else key
                if any(part in _SHARED for part in module.split(".")):
                    raise AdapterError(
                        f"{wrong}changes {module.removeprefix('base_model.model.')!r}, but all "
                        "members share the base's embeddings and LM head; merge it into the base "
                        "(peft: merge_and_unload) and serve full checkpoints with --policy"
                    )
                if match is None:
                    raise AdapterError(
                        f"{wrong}holds the tensor {key!r}; only lora_A and lora_B of linear layers "
                        "can share a trunk: merge it into the base (peft: merge_and_unload) and "
                        "serve full checkpoints with --policy"
                    )
                shape = file.get_slice(key).get_shape()
                if len(shape) != 2:
                    raise AdapterError(
                        f"{wrong}has a tensor of shape {shape} as {key!r}; only the matrices of "
                        "linear layers can share a trunk: merge it into the base (peft: "
                        "merge_and_unload) and serve full checkpoints with --policy"
                    )
                shapes[module, match["side"]] = shape
    except SafetensorError as error:
        raise AdapterError(f"{wrong}cannot be read: {path.name}: {error}") from error
    check_patterns(patterns(config), sorted({module for module, _ in shapes}), wrong)
    ranks: dict[str, int] = {}
    for (module, side), shape in shapes.items():
        other = shapes.get((module, "B" if side == "A" else "A"))
        if other is None:
            raise AdapterError(f"{wrong}has lora_{side} of {module!r} but not its other factor")
        if side == "A":
            rank = helper.get_rank_and_scaling(module)[0]
            if not shape[0] == other[1] == rank:
                raise AdapterError(
                    f"{wrong}has rank {shape[0]} (lora_A) and {other[1]} (lora_B) at {module!r}, "
                    f"but {ADAPTER_CONFIG} says {rank}"
                )
            ranks[module] = rank
    if not ranks:
        raise AdapterError(f"{wrong}is empty: {path.name} holds no tensors")
    if left_out := untargeted(config, ranks):
        raise AdapterError(
            f"{wrong}holds factors of {left_out[0]!r}, which its adapter_config.json does not "
            "target, so PEFT would leave them out; name the layer in target_modules (see also "
            "exclude_modules and layers_to_transform), or remove its tensors"
        )
    return Adapter(
        name=policy.name,
        folder=folder,
        ranks=ranks,
        helper=helper,
        unknown=tuple(unknown_entries(config)),
        stamps=stamps,
    )
