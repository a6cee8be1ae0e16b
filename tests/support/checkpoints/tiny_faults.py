"""Policies that fail: they compute NaN where a test wants it, or lack parameters."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def with_nan_token(folder: Path, source: Path, *, token: int) -> Path:
    """Copies a policy and spoils its embedding of one token: texts with it end in NaN."""
    return _spoiled(folder, source, "model.embed_tokens.weight", row=token)


def with_nan_logit(folder: Path, source: Path, *, token: int) -> Path:
    """Copies a policy and spoils its LM head's row of one token: every row has one NaN."""
    return _spoiled(folder, source, "lm_head.weight", row=token)


def with_overflow(folder: Path, source: Path) -> Path:
    """Copies an adapter with parameters so large that every hidden state overflows."""
    return _spoiled(folder, source, "lora_B.weight", file="adapter_model.safetensors", value=1e38)


def without(folder: Path, source: Path, names: Collection[str]) -> Path:
    """A copy of a checkpoint that lacks tensors."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in names:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _spoiled(
    folder: Path,
    source: Path,
    name: str,
    *,
    row: int | None = None,
    file: str = "model.safetensors",
    value: float = torch.nan,
) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / file)
    key = next(key for key in tensors if key.endswith(name))
    tensors[key][slice(None) if row is None else row] = value
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder
