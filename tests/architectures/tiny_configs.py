"""Tiny configs of any architecture: all sizes are made small, all else stays as its class has it.

A config class says nothing of what its entries mean. But most name their sizes alike, so a table of
names does for most of them; the others are exceptions by model type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from architectures.exceptions import EXCEPTIONS

VOCAB_SIZE = 320
NUM_LAYERS = 2
MOST_KINDS = 4
"""The most kinds that layers have in one list."""
WINDOW = 32
"""Tokens; shorter than most of the trial's texts."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "initializer_range": 0.08,
    "init_std": 0.08,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 512),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 128),
    **dict.fromkeys(
        ("intermediate_size", "intermediate_size_mlp", "ffn_dim", "ffn_hidden_size", "n_inner"),
        160,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "moe_shared_expert_intermediate_size",
        ),
        96,
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), NUM_LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "kv_n_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "attention_head_dim", "v_head_dim"), 32),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    "moe_num_experts": 4,
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k", "moe_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    "first_k_dense_replace": 1,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 32),
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "rotary_dim": 16,
}
"""The entries of configs that are set, where the class has them."""


def tiny_config(model_type: str, settings: Mapping[str, Any]) -> Any:
    """A config of a model type with small sizes.

    Args:
      settings: entries that win over those of the tables.
    Raises: whatever the class raises for entries that do not fit each other.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    exceptions = EXCEPTIONS.get(model_type, {})
    return config_class(**{**_entries(config_class), **exceptions, **settings})


def _entries(config_class: Any) -> dict[str, Any]:
    names = {each.name for each in dataclasses.fields(config_class)}
    entries = {
        name: size
        for name, size in SIZES.items()
        if name in names and not isinstance(getattr(config_class, name, None), property)
    }
    return entries | _layer_lists(config_class)


def _layer_lists(config_class: Any) -> dict[str, Any]:
    """Lists with an entry a layer, cut to a few layers that have every kind."""
    default = config_class()
    written = default.to_dict()
    num_layers = getattr(default, "num_hidden_layers", None)
    kinds = {
        name: list(dict.fromkeys(value))
        for name, value in written.items()
        if isinstance(value, list)
        and len(value) == num_layers
        and all(isinstance(each, str | int | float) for each in value)
    }
    # A list of numbers of layers is no list of kinds: its class makes a new one.
    most = max([NUM_LAYERS, *(len(each) for each in kinds.values() if len(each) <= MOST_KINDS)])
    cut: dict[str, Any] = {
        name: [each[index % len(each)] for index in range(most)]
        if len(each) <= MOST_KINDS
        else None
        for name, each in kinds.items()
    }
    if most > NUM_LAYERS:
        cut["num_hidden_layers"] = most
    return cut
