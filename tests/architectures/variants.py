"""Forms of an architecture that differ in their projections or their attention."""

from __future__ import annotations

from typing import Any

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "LlamaForCausalLM": {
        "": {},
        "biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    },
    "FalconForCausalLM": {
        "one key head": {"multi_query": True, "new_decoder_architecture": False},
        "new decoder": {"new_decoder_architecture": True, "num_kv_heads": 2},
        "alibi": {
            "alibi": True,
            "num_kv_heads": 4,
            "multi_query": False,
            "new_decoder_architecture": False,
            "parallel_attn": False,
            "bias": True,
        },
    },
    "GPTNeoXForCausalLM": {"": {}, "one after the other": {"use_parallel_residual": False}},
    "OPTForCausalLM": {
        "": {},
        "norms after": {"do_layer_norm_before": False, "word_embed_proj_dim": 64},
    },
    "StableLmForCausalLM": {
        "": {},
        "norms of heads": {
            "qk_layernorm": True,
            "use_parallel_residual": True,
            "use_qkv_bias": True,
        },
    },
    "CohereForCausalLM": {"": {}, "norms of heads": {"use_qk_norm": True}},
    "Qwen2ForCausalLM": {
        "": {},
        "window": {"use_sliding_window": True, "max_window_layers": 1, "layer_types": None},
    },
    "Gemma4ForCausalLM": {
        "": {"attention_k_eq_v": False},
        "keys as values": {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
        "shared keys": {"attention_k_eq_v": False, "num_kv_shared_layers": 2},
    },
    "DeepseekV2ForCausalLM": {"": {}, "plain queries": {"q_lora_rank": None}},
}
"""By architecture: a variant's name, and the entries of its config."""
