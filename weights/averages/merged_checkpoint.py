"""The base with the weighted sum of its adapters' updates added, as a full checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefmix.mixing.checkpoints.file_names import ADAPTER_CONFIG
from prefmix.mixing.checkpoints.lora import read_adapter
from prefmix.mixing.spec import Policy
from prefmix.weights.averages.adapter_sum import Update, opened_sum
from prefmix.weights.averages.checkpoint_files import fetched_folder, opened, write_parameters
from prefmix.weights.averages.copied_files import checked_config, copy_text_files, write_config
from prefmix.weights.averages.errors import ParameterAverageError
from prefmix.weights.engines.progress import Progress

if TYPE_CHECKING:
    import torch

_ANOTHER_WAY = "export the adapter, without --merge, and merge it with peft (merge_and_unload)"


def write_merged(
    folder: Path,
    base: Policy,
    shares: Mapping[Policy, float],
    *,
    text_from: Policy | None = None,
    progress: Progress | None = None,
) -> int:
    """Writes base + sum_k w_k s_k B_k A_k, computed in float32 and stored in the base's dtypes.

    Args:
      folder: an empty folder, for the new checkpoint.
      base: the model that the adapters belong to.
      shares: adapter -> its share; none writes the base itself.
      text_from: the adapter whose own tokenizer, chat template and defaults of generation prevail
        over those of the base; None if none do.
      progress: shows how many tensors are done; None is silent.
    Returns: the number of bytes of the parameters.
    Raises: ParameterAverageError if an adapted layer has no tensor of its own in the base's files.
    """
    source = fetched_folder(base)
    config = checked_config([base], [source])
    transposed = {name for policy in shares for name in _transposed(policy)}
    with opened([source]) as (checkpoint,), opened_sum(shares) as total:
        updated = {_tensor_name(module, checkpoint.forms): module for module in total.modules}

        def merged(name: str) -> torch.Tensor:
            tensor = checkpoint.read(name)
            if name not in updated:
                return tensor
            module = updated[name]
            return _added(tensor, total.update(module), module, transpose=module in transposed)

        write_config(folder, config, source, source)
        own = [] if text_from is None else [read_adapter(text_from).folder]
        copy_text_files(folder, source, *own)
        return write_parameters(folder, checkpoint.forms, merged, progress=progress)


def _tensor_name(module: str, names: Mapping[str, object]) -> str:
    """The tensor of a linear layer; files may leave out the first part of the model's names."""
    for name in (f"{module}.weight", f"{module.partition('.')[2]}.weight"):
        if name in names:
            return name
    raise ParameterAverageError(
        f"the base's files have no tensor {module}.weight, which the adapters update: the layer is "
        f"stored joined with others or under another name; {_ANOTHER_WAY}"
    )


def _transposed(policy: Policy) -> Sequence[str]:
    """The layers of an adapter whose parameters are stored as [in, out]."""
    adapter = read_adapter(policy)
    config = json.loads((adapter.folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return tuple(adapter.ranks) if config.get("fan_in_fan_out") else ()


def _added(tensor: torch.Tensor, update: Update, module: str, *, transpose: bool) -> torch.Tensor:
    import torch

    product = update.lora_b @ update.lora_a
    product = product.T if transpose else product
    if product.shape != tensor.shape:
        raise ParameterAverageError(
            f"the adapters update {module!r} as {tuple(product.shape)}, but the base has "
            f"{tuple(tensor.shape)}; they belong to another base"
        )
    wide = torch.promote_types(tensor.dtype, torch.float32)
    merged = (tensor.to(wide) + product).to(tensor.dtype)
    if not bool(torch.isfinite(merged).all()):
        raise ParameterAverageError(
            f"the merged {module!r} is not finite in {tensor.dtype}: the weights carry it out of "
            "range"
        )
    return merged
