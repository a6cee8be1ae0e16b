"""Random LoRA adapters in PEFT's format, and the full checkpoints that they merge to."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

ALL_LINEAR = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


def save_adapter(
    folder: Path,
    base: Path,
    *,
    seed: int,
    rank: int = 4,
    alpha: float = 8.0,
    targets: Sequence[str] = ALL_LINEAR,
    use_rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    size: float = 0.25,
    layers: Sequence[int] | None = None,
    **config: Any,
) -> Path:
    """Writes an adapter with random factors and returns its folder.

    Args:
      targets: last words of the linear layers to adapt.
      size: spread of the factors; large enough that two seeds give clearly different policies.
      layers: numbers of the layers to adapt; None for all.
      rank_pattern, alpha_pattern: as in PEFT, keys are regexes.
      config: further entries of adapter_config.json.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in AutoModelForCausalLM.from_pretrained(base).named_modules():
        last = name.rpartition(".")[2]
        weight = getattr(module, "weight", None)  # a router of experts is no torch.nn.Linear
        if last not in targets or weight is None or weight.dim() != 2:
            continue
        if layers is not None and not any(f"layers.{number}." in name for number in layers):
            continue
        own_rank = _of_module(name, rank_pattern or {}, rank)
        rows, columns = _matrix(module).shape
        for side, shape in (("A", (own_rank, columns)), ("B", (rows, own_rank))):
            factor = torch.randn(shape, generator=generator) * size
            tensors[f"base_model.model.{name}.lora_{side}.weight"] = factor
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(targets),
        "use_rslora": use_rslora,
        "rank_pattern": dict(rank_pattern or {}),
        "alpha_pattern": dict(alpha_pattern or {}),
        "bias": "none",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def _matrix(module: torch.nn.Module) -> torch.Tensor:
    """[out, in], a view of a linear layer's parameter; GPT-2 stores it transposed."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def _of_module(name: str, patterns: Mapping[str, Any], default: Any) -> Any:
    """The value of the first key that matches the end of the name as a regex, as in PEFT."""
    ends = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
    return next(ends, default)


def save_merged(folder: Path, base: Path, adapter: Path) -> Path:
    """Writes the full checkpoint that base and adapter make: W + scaling * B A, by hand."""
    from safetensors.torch import load_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for key, lora_a in tensors.items():
            if not key.endswith("lora_A.weight"):
                continue
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            lora_b = tensors[key.replace("lora_A", "lora_B")]
            alpha = _of_module(name, config["alpha_pattern"], config["lora_alpha"])
            rank = lora_a.shape[0]
            scaling = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
            matrix = _matrix(model.get_submodule(name))
            matrix += (scaling * lora_b.double() @ lora_a.double()).to(matrix.dtype)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder
