"""Entries of configs that the table of sizes does not cover."""

from __future__ import annotations

from typing import Any

MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_chunk_size": 32,
}
LINEAR_ATTENTION: dict[str, Any] = {
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
}
"""Attention whose keys and values are made from one vector; a CPU knows no other width of it."""

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "afmoe": {"score_func": "sigmoid"},
    "axk1": LATENT,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {
            "hidden_size": 128,
            "ffn_hidden_size": 96,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "deepseek_v2": LATENT,
    "deepseek_v3": {**LATENT, "topk_method": "noaux_tc"},
    "deepseek_v32": {"index_topk": 16, "index_head_dim": 128, "index_n_heads": 4, **LATENT},
    "falcon": {"ffn_hidden_size": 512},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 256},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {"query_pre_attn_scalar": 32},
    "gemma3n_text": {
        "vocab_size_per_layer_input": 320,
        "hidden_size_per_layer_input": 32,
        "laurel_rank": 8,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": 160,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "gemma4_text": {
        "vocab_size_per_layer_input": 320,
        "hidden_size_per_layer_input": 32,
        "num_hidden_layers": 4,
        "num_experts": None,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "glm4_moe": {"head_dim": 32},
    "glm4_moe_lite": {**LATENT, "first_k_dense_replace": 1},
    "glm_moe_dsa": {"index_topk": 16, "index_head_dim": 128, "index_n_heads": 4, **LATENT},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "hy_v4": {"index_topk": 16, "index_head_dim": 128, "index_n_heads": 4, **LATENT},
    "jamba": {"mamba_d_state": 8, "attn_layer_offset": 1, "attn_layer_period": 2},
    "kimi_linear": {"linear_head_dim": 32, **LATENT},
    "lfm2": {"block_dim": 128, "conv_dim": 128, "conv_dim_out": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4_text": {"num_experts_per_tok": 1},
    "longcat_flash": {
        **LATENT,
        "head_dim": 64,
        "expert_ffn_hidden_size": 96,
        "zero_expert_num": 2,
        "moe_topk": 2,
    },
    "mamba": {"state_size": 8, "time_step_rank": 8},
    "mamba2": {"num_heads": 8, "head_dim": 32, "state_size": 16, "n_groups": 1, "chunk_size": 32},
    "minicpm3": {**LATENT, "scale_emb": 1, "dim_model_base": 64},
    "nemotron_h": {
        "ssm_state_size": 16,
        "mamba_num_heads": 8,
        "mamba_head_dim": 32,
        "n_groups": 1,
        "chunk_size": 32,
    },
    "phi3": {"original_max_position_embeddings": 512},
    "qwen3_5_moe_text": LINEAR_ATTENTION,
    "qwen3_5_text": LINEAR_ATTENTION,
    "qwen3_next": LINEAR_ATTENTION,
    "qwen4_exp_text": {
        **LINEAR_ATTENTION,
        "hc_lowrank": 16,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 32,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "vaultgemma": {"query_pre_attn_scalar": 32},
    "zamba2": {"attention_head_dim": 64},
}
"""By model type: entries of the config."""

ENGINE: dict[str, dict[str, Any]] = {
    name: {
        "attention_backend": "CPU_MLA",
        "compilation_config": {"custom_ops": ["-rotary_embedding"]},
    }
    for name in ("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite")
}
"""By model type: flags of the engine. By itself vLLM takes AMX for latent attention, which knows no
float32, and rotates by a kernel for CPUs that is wrong for several heads
(prefmix.mixing.workarounds.cpu_rotary)."""
