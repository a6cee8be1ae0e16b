"""Quantised checkpoints for the tests: int8 weights and activations, as compressed-tensors."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def quantise(folder: Path, *, ignore: Collection[str]) -> Path:
    """Turns a checkpoint's linear layers into int8, one scale an output channel.

    Args:
      folder: a checkpoint as `save_policy` writes it; changed in place.
      ignore: names of linear layers that stay as they are; lm_head always does.
    """
    path = folder / "model.safetensors"
    tensors = load_file(path)
    kept = {"lm_head", *ignore}
    for name in [each for each in tensors if each.endswith("_proj.weight")]:
        layer = name.removesuffix(".weight")
        if layer in kept:
            continue
        scale = tensors[name].float().abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (tensors[name].float() / scale).round().to(torch.int8)
        tensors[f"{layer}.weight_scale"] = scale
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    eight_bits = {"num_bits": 8, "type": "int", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": sorted(kept),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**eight_bits, "strategy": "channel", "dynamic": False},
                "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
            }
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
