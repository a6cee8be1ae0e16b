"""Quantised checkpoints for the tests: int8 weights and activations, as compressed-tensors."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def quantise(
    folder: Path, *, ignore: Collection[str] = (), cache_scale: float | None = None
) -> Path:
    """Turns a checkpoint's linear layers into int8, one scale an output channel.

    Args:
      folder: a checkpoint as `save_policy` writes it; changed in place.
      ignore: names of linear layers that stay as they are; lm_head always does.
      cache_scale: the scale of keys and values in a cache of eight bits; None for no such scale.
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
        if cache_scale is not None and name.endswith("self_attn.k_proj.weight"):
            for kind in ("k_scale", "v_scale"):
                scale_name = name.replace("k_proj.weight", kind)
                tensors[scale_name] = torch.tensor([cache_scale])
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
    if cache_scale is not None:
        config["quantization_config"]["kv_cache_scheme"] = {
            **eight_bits,
            "type": "float",
            "strategy": "tensor",
            "dynamic": False,
        }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
