"""Random policies for the tests: small, different, seeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prefmix.bench.contestants.random_models import build_tokenizer, save_model

__all__ = ["PROJECTED", "VOCAB_SIZE", "build_tokenizer", "save_policy"]

VOCAB_SIZE = 320

PROJECTED: dict[str, Any] = {
    "model_type": "opt",
    "word_embed_proj_dim": 32,
    "do_layer_norm_before": False,
    "ffn_dim": 128,
    "init_std": 0.08,
    "tie_word_embeddings": True,
}
"""OPT with 350M parameters, but small: its head takes narrower rows than its layers."""


def save_policy(
    folder: Path,
    *,
    seed: int,
    model_type: str = "llama",
    layers: int = 2,
    hidden: int = 64,
    heads: int = 2,
    kv_heads: int | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **overrides: Any,
) -> Path:
    """Writes a complete Hugging Face folder with random parameters and returns it.

    The parameters are spread widely enough that two seeds give clearly different distributions.
    """
    settings = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": 1024,
        "initializer_range": 0.08,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        **overrides,
    }
    if isinstance(getattr(CONFIG_MAPPING[model_type], "head_dim", None), property):
        del settings["head_dim"]  # the class computes it
    config = CONFIG_MAPPING[model_type](**settings)
    # Norm gains near 1 for every seed would make the policies too alike.
    return save_model(
        folder, config, seed=seed, head_gain=2.0, tokenizer=tokenizer or build_tokenizer()
    )
