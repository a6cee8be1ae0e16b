"""Random checkpoints of any architecture, adapters of their linear layers, and the two merged."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from architectures.tiny_configs import VOCAB_SIZE, tiny_config
from support.checkpoints.tiny_policies import build_tokenizer

RANK = 4
ALPHA = 8.0
FACTOR_SIZE = 0.12
"""Spread of the factors: an update is about as large as the matrix that it updates."""
MATRIX_SIZE = 0.08
HEAD_GAIN = 2.0


def save_random(folder: Path, model_type: str, settings: Mapping[str, Any], *, seed: int) -> None:
    """Writes a whole checkpoint in which no parameter has a value that hides a fault.

    Norms are no ones and biases no zeros, as they would be in a new model.
    """
    torch.manual_seed(seed)
    config = tiny_config(model_type, settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=MATRIX_SIZE)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("bias") and buffer.is_floating_point():
                buffer.add_(0.1 * torch.randn_like(buffer))
        head.weight.mul_(HEAD_GAIN)
    model.save_pretrained(folder)
    build_tokenizer(vocab_size=VOCAB_SIZE).save_pretrained(folder)


def save_adapter(folder: Path, base: Path, *, seed: int, left_out: Collection[str]) -> list[str]:
    """Writes an adapter of every linear layer, in PEFT's format, and beside it the merged model.

    Routers of experts count as linear layers: in transformers 4 they were some.

    Args:
      folder: gets `adapter` and `merged`.
      left_out: kinds of layers that stay as they are.
    Returns: the kinds of layers that are adapted.
    """
    generator = torch.Generator().manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    head = model.get_output_embeddings()
    tensors: dict[str, torch.Tensor] = {}
    kinds: dict[str, None] = {}
    targets: set[str] = set()
    for name, module in model.named_modules():
        kind, weight = kind_of(name), getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.dim() != 2:
            continue
        is_other = isinstance(module, nn.Embedding) or "Norm" in type(module).__name__
        if is_other or module is head or kind in left_out:
            continue
        kinds[kind] = None
        stem, _, last = name.rpartition(".")
        targets.add(f"{stem.rpartition('.')[2]}.{last}" if last.isdigit() else last)
        matrix = weight.T if isinstance(module, Conv1D) else weight
        lora_a = torch.randn(RANK, matrix.shape[1], generator=generator) * FACTOR_SIZE
        lora_b = torch.randn(matrix.shape[0], RANK, generator=generator) * FACTOR_SIZE
        tensors[f"base_model.model.{name}.lora_A.weight"] = lora_a
        tensors[f"base_model.model.{name}.lora_B.weight"] = lora_b
        with torch.no_grad():
            matrix += ALPHA / RANK * (lora_b.double() @ lora_a.double()).float()
    model.save_pretrained(folder / "merged")
    build_tokenizer(vocab_size=VOCAB_SIZE).save_pretrained(folder / "merged")
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": ALPHA,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(each, Conv1D) for each in model.modules()),
        "target_modules": sorted(targets),
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return list(kinds)


def kind_of(layer: str) -> str:
    """The name of a layer without the numbers in it."""
    return re.sub(r"\.\d+(?=\.|$)", ".N", layer)
