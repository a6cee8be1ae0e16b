"""Kinds of models whose mixture was wrong, or was never proven right, are refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from prefmix.mixing.spec import hf_overrides
from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import spec_of_folders

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256,
}
CHUNKS = {"attention_chunk_size": 32, "head_dim": 32, "num_local_experts": 2}
LATENT = {
    "kv_lora_rank": 32,
    "q_lora_rank": None,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}


@pytest.mark.parametrize(
    ("model_type", "architecture", "more", "kind"),
    [
        ("llama4_text", "Llama4ForCausalLM", CHUNKS, "a model that attends in chunks"),
        (
            "deepseek_v2",
            "DeepseekV2ForCausalLM",
            LATENT,
            "a model with multi-head latent attention",
        ),
    ],
)
def test_attention_of_another_kind_is_refused_before_loading(
    policies: list[Path],
    tmp_path: Path,
    model_type: str,
    architecture: str,
    more: dict[str, Any],
    kind: str,
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    folders = [shutil.copytree(policies[0], tmp_path / name) for name in ("one", "two")]
    config = AutoConfig.for_model(model_type, **SMALL, **more, architectures=[architecture])
    for folder in folders:
        config.save_pretrained(folder)
    spec = spec_of_folders(folders)
    arguments = EngineArgs(
        model=spec.checkpoints[0].model,
        hf_overrides=hf_overrides(spec),
        max_model_len=64,
        enforce_eager=True,
    )
    with pytest.raises(ValueError, match=f"policy 'one' is {kind} .*{architecture}"):
        arguments.create_engine_config()
