"""Parameter averaging ("rewarded soup"): a checkpoint whose tensors are the mean of others'.

The rival of a mixture for policies that were tuned from a common start: one model to run instead of
K, one weighting instead of one a request.
Source: Rame et al. 2023, Rewarded Soups (arXiv 2306.04488).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

PARAMETERS = "model.safetensors"


def write_soup(folder: Path, weights: Mapping[Path, float]) -> Path:
    """Writes the average of some checkpoints, computed in float32, stored as they are stored.

    Args:
      folder: of the new checkpoint; must not exist.
      weights: checkpoint folder -> its share; the first also gives config and tokenizer.
    Returns: `folder`.
    Raises: ValueError if the checkpoints differ in the names or shapes of their tensors.
    """
    import torch
    from safetensors.torch import load_file, save_file

    first, *others = weights
    stored = load_file(first / PARAMETERS)
    average = {name: tensor.float() * weights[first] for name, tensor in stored.items()}
    for other in others:
        tensors = load_file(other / PARAMETERS)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if shapes != {name: tensor.shape for name, tensor in average.items()}:
            raise ValueError(f"{other} and {first} differ in their tensors; they have no average")
        for name, tensor in tensors.items():
            average[name] += tensor.float() * weights[other]
    folder.mkdir(parents=True)
    for path in first.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, folder / path.name)
    rounded: dict[str, torch.Tensor] = {
        name: tensor.to(stored[name].dtype).contiguous() for name, tensor in average.items()
    }
    save_file(rounded, folder / PARAMETERS, metadata={"format": "pt"})
    return folder
