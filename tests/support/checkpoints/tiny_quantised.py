"""Quantised checkpoints for the tests: int8 and 8-bit floats, as exporters write them."""

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


BLOCK = 128
"""Rows and columns of a matrix that share a scale in checkpoints of 8-bit floats."""


def quantise_to_float8(folder: Path, *, ignore: Collection[str], exporter: str) -> Path:
    """Turns a checkpoint's linear layers into 8-bit floats, one scale a block of 128 x 128.

    Args:
      folder: a checkpoint as `save_policy` writes it, of sizes that `BLOCK` divides; changed in
        place.
      ignore: names of linear layers that stay as they are; lm_head always does.
      exporter: "fp8", whose list is `modules_to_not_convert`, or "compressed-tensors".
    """
    path = folder / "model.safetensors"
    tensors = load_file(path)
    kept = {"lm_head", *ignore}
    suffix = {"fp8": "weight_scale_inv", "compressed-tensors": "weight_scale"}[exporter]
    for name in [each for each in tensors if each.endswith("_proj.weight")]:
        layer = name.removesuffix(".weight")
        if layer in kept:
            continue
        rows, columns = tensors[name].shape
        blocks = tensors[name].float().view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
        tensors[name] = (blocks / scale).to(torch.float8_e4m3fn).view(rows, columns)
        tensors[f"{layer}.{suffix}"] = scale[:, 0, :, 0].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    eight_bits = {"num_bits": 8, "type": "float", "symmetric": True}
    by_block = {**eight_bits, "strategy": "block", "block_structure": [BLOCK, BLOCK]}
    by_group = {**eight_bits, "strategy": "group", "group_size": BLOCK}
    config["quantization_config"] = {
        "fp8": {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": sorted(kept),
        },
        "compressed-tensors": {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "quantization_status": "compressed",
            "ignore": sorted(kept),
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {**by_block, "dynamic": False},
                    "input_activations": {**by_group, "dynamic": True},
                }
            },
        },
    }[exporter]
    (folder / "config.json").write_text(json.dumps(config))
    return folder
