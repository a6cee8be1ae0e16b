"""The tokenizer of the demo policies, and its chat template.

Byte-level BPE trained on the reviews: nearly every word is one token, and any other text still
encodes byte by byte.

One rule for the beginning-of-sequence token: the chat template writes it, the tokenizer never
does. So a rendered chat has exactly one, and a raw completion prompt has none; the policies are
trained on both forms.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS: tuple[str, ...] = (PAD, BOS, EOS, SYSTEM, USER, ASSISTANT)
"""Special tokens in the order of their ids: pad 0, bos 1, eos 2, ..."""

VOCABULARY_SIZE = 1400
"""Largest vocabulary; training stops earlier once every word of the corpus is one token."""
MAX_LENGTH_TOKENS = 1024

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' + message['content'] | trim }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + message['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('role must be system, user or assistant, got '"
    " + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Trains the tokenizer; equal texts give an equal tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def chat_text(prompt: str, *, system: str = "") -> str:
    """One user message with a generation prompt, as the chat template renders it."""
    before = f"{SYSTEM}{system}" if system else ""
    return f"{BOS}{before}{USER}{prompt}{ASSISTANT}"


def continuation_text(context: str, answer: str) -> str:
    """An answer that continues a context: directly after chat markup, else after a space."""
    return answer if context.endswith(ASSISTANT) or not context else f" {answer}"


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    transformers does not write these files, because its version 5 names a tokenizer class that
    version 4 cannot read.
    """
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_LENGTH_TOKENS,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in (
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
