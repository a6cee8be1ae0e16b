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


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    ("model_type", "architecture", "more", "kind"),
    [
        ("gemma3", "Gemma3ForConditionalGeneration", {"text_config": SMALL}, "multimodal"),
        ("gemma4", "Gemma4ForConditionalGeneration", {"text_config": SMALL}, "multimodal"),
        ("t5", "T5ForConditionalGeneration", {}, "an encoder-decoder model"),
        ("bart", "BartForConditionalGeneration", {}, "an encoder-decoder model"),
        ("bert", "BertModel", {}, "no text-generation model"),
        ("mamba", "MambaForCausalLM", {}, "a state-space or hybrid model"),
        ("llama4_text", "Llama4ForCausalLM", CHUNKS, "a model that attends in chunks"),
        (
            "deepseek_v2",
            "DeepseekV2ForCausalLM",
            LATENT,
            "a model with multi-head latent attention",
        ),
    ],
)
def test_other_models_than_those_of_plain_attention_are_refused_before_loading(
    policies: list[Path],
    tmp_path: Path,
    model_type: str,
    architecture: str,
    more: dict[str, Any],
    kind: str,
    is_first: bool,
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    other = Path(shutil.copytree(policies[0], tmp_path / "other"))
    config = AutoConfig.for_model(model_type, **{**SMALL, **more}, architectures=[architecture])
    config.save_pretrained(other)
    spec = spec_of_folders([other, policies[0]] if is_first else [policies[0], other])
    arguments = EngineArgs(
        model=spec.checkpoints[0].model,
        hf_overrides=hf_overrides(spec),
        max_model_len=64,
        enforce_eager=True,
    )
    with pytest.raises(ValueError, match=f"policy 'other' is {kind} .*{architecture}"):
        arguments.create_engine_config()
