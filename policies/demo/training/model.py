"""The demo policies' architecture, and their checkpoints on disk.

A Llama of about 0.2 M parameters: two layers, width 64, two heads of 32 (the smallest head that
vLLM's CPU attention takes), tied embeddings.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from prefmix.mixing.checkpoints.file_names import ADAPTER_CONFIG, ADAPTER_PARAMETERS
from prefmix.policies.demo.training.tokenizer import (
    BOS,
    EOS,
    MAX_LENGTH_TOKENS,
    PAD,
    save_tokenizer,
)

FILE_MODE = 0o644
_CONFIG_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
"""The values in config.json; all others are Llama's defaults."""


def new_model(tokenizer: Tokenizer, *, seed: int) -> Any:
    """Creates a randomly initialised LlamaForCausalLM, float32, for this tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH_TOKENS,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.token_to_id(PAD),
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def round_to_bfloat16(model: Any) -> None:
    """Rounds every parameter in place to bfloat16 values; computation stays in float32."""
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16().float())


def save_checkpoint(model: Any, tokenizer: Tokenizer, folder: Path, *, card: str) -> None:
    """Writes a complete Hugging Face folder: parameters in bfloat16, tokenizer, model card."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {
        name: parameter.detach().bfloat16().contiguous()
        for name, parameter in model.named_parameters()  # a tied LM head is named once
    }
    save_file(parameters, folder / "model.safetensors", metadata={"format": "pt"})
    config = {name: getattr(model.config, name) for name in _CONFIG_FIELDS} | {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
    }
    generation = {name: config[name] for name in _CONFIG_FIELDS if name.endswith("_token_id")}
    generation["do_sample"] = True
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        text = json.dumps(content, indent=2, sort_keys=True)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(FILE_MODE)


def load_checkpoint(folder: Path) -> Any:
    """The model of a Hugging Face folder, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_adapted(base: Path, adapter: Path) -> Any:
    """The base with the adapter merged into it, in float32."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load_checkpoint(base), adapter).merge_and_unload().eval()


def copy_adapter(trained: Path, folder: Path) -> None:
    """Copies the adapter without the path of its base, which is the trainer's own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (ADAPTER_CONFIG, ADAPTER_PARAMETERS):
        shutil.copyfile(trained / name, folder / name)
    path = folder / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": None}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_cards(output: Path, cards: Mapping[str, str]) -> None:
    """Writes the model card of each folder, and makes all files readable by all."""
    for name, card in cards.items():
        (output / name / "README.md").write_text(card, encoding="utf-8")
    for path in output.glob("*/*"):
        path.chmod(FILE_MODE)
