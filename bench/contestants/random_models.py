"""Random models that vLLM and transformers load: policies, averages, adapters."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from prefmix.mixing.checkpoints.file_names import ADAPTER_CONFIG, ADAPTER_PARAMETERS, PARAMETERS

CHAT_TEMPLATE = (
    "<s>{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a Llama block, all of which an adapter changes."""

DEVIATION = 0.02
"""That of transformers' random initialisation."""

BLOCK = 4_194_301
"""Numbers that are drawn; a prime, so that no two rows of a matrix are alike."""

_TEXT = [
    "the quick brown fox jumps over the lazy dog and the policies are mixed token by token",
    "weights on the simplex sum to one; every request may choose its own and keeps it to the end",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The sizes of a Llama-like model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int

    def config(self) -> LlamaConfig:
        """The config that transformers and vLLM read."""
        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.hidden // self.heads,
            vocab_size=self.vocab,
            max_position_embeddings=4096,
            bos_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=False,
        )

    @property
    def num_parameters(self) -> int:
        """Parameters of one model of this shape."""
        kv_width = self.hidden // self.heads * self.kv_heads
        attention = 2 * self.hidden * (self.hidden + kv_width)
        block = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * block + 2 * self.vocab * self.hidden + self.hidden

    def to_dict(self) -> dict[str, int]:
        """JSON-ready form."""
        return asdict(self)


def build_tokenizer(*, vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with exactly `vocab_size` tokens; any text round-trips.

    A short corpus yields few merges. The other tokens are words that no text is split into; a
    policy may still draw them, and they are detokenised like all others.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    written = json.loads(tokenizer.to_str())
    vocab = written["model"]["vocab"]
    vocab.update({f"Ġword{index}": index for index in range(len(vocab), vocab_size)})
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(written)),
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )


def save_model(
    folder: Path,
    config: Any,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    head_gain: float = 1.0,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Writes a complete Hugging Face folder with random parameters and returns it.

    Args:
      folder: made if missing.
      config: a transformers config.
      seed: seed of the parameters.
      dtype: dtype of the parameters in the file.
      head_gain: factor on the output embeddings; above 1 two seeds differ more clearly.
      tokenizer: None builds one of the config's vocabulary.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(head_gain)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    (tokenizer or build_tokenizer(vocab_size=config.vocab_size)).save_pretrained(folder)
    return folder


def save_average(folder: Path, models: Sequence[Path]) -> Path:
    """Writes the mean of the models' parameters as one model (a "soup").

    Args:
      folder: made if missing.
      models: local folders of one architecture and shape, each with one model.safetensors.
    Raises: ValueError if their tensors differ in name or shape.
    """
    states = [load_file(model / PARAMETERS) for model in models]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    for model, other in zip(models, shapes, strict=True):
        if other != shapes[0]:
            raise ValueError(f"{models[0]} and {model} differ in shape, so they have no average")
    mean = {
        name: torch.stack([state[name].float() for state in states]).mean(0).to(first.dtype)
        for name, first in states[0].items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(mean, folder / PARAMETERS, metadata={"format": "pt"})
    for path in models[0].iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def save_shape(folder: Path, config: Any, *, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Writes a Hugging Face folder without parameters, for `dummy_loader`, and returns it."""
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def shapes_of(model: Path) -> Mapping[str, Sequence[int]]:
    """Shape of each tensor of a local model by its name; by its config if it has no parameters."""
    if (model / PARAMETERS).is_file():
        with safe_open(model / PARAMETERS, framework="pt") as checkpoint:
            names = checkpoint.keys()
            return {name: checkpoint.get_slice(name).get_shape() for name in names}
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    return {name: tensor.shape for name, tensor in empty.state_dict().items()}


def dummy_tensors(model: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of each tensor of a model on the CPU, in torch's default dtype; two models of
    different folders differ, or a mixture would store them once."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(model).encode()))
    block = torch.randn(BLOCK, generator=generator, device="cpu").mul_(DEVIATION)
    drawn = block.to(torch.get_default_dtype())
    for name, shape in shapes_of(model).items():
        if len(shape) == 1:  # a norm's
            yield name, torch.ones(shape, device="cpu")
            continue
        size = math.prod(shape)
        yield name, drawn.repeat(-(-size // BLOCK))[:size].view(*shape)


def save_adapter(
    folder: Path, base: Path, *, rank: int, seed: int, dtype: torch.dtype = torch.float32
) -> Path:
    """Writes a LoRA adapter of every linear layer of a local base, in PEFT's format."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes_of(base).items():
        module = name.removesuffix(".weight")
        if module.endswith(ADAPTED):
            num_out, num_in = shape
            lora_a = torch.randn(rank, num_in, generator=generator) / num_in**0.5
            lora_b = torch.randn(num_out, rank, generator=generator) * 0.02
            tensors[f"base_model.model.{module}.lora_A.weight"] = lora_a.to(dtype)
            tensors[f"base_model.model.{module}.lora_B.weight"] = lora_b.to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / ADAPTER_PARAMETERS, metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "bias": "none",
        "target_modules": list(ADAPTED),
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2))
    return folder
