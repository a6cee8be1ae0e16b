"""Kinds of models whose mixture was wrong, or was never proven right, are refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from vllm.engine.arg_utils import EngineArgs

from prefmix.mixing.spec import MixtureSpec, hf_overrides
from support.checkpoints.tiny_policies import VOCAB_SIZE, save_policy
from support.engines import AdaptedBase, EngineFactory, metric, model_of, spec_of_folders
from support.exactness import TOLERANCE_NATS, Oracle, generate, random_jobs, rounding_errors

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256,
}
CHUNKS = {
    "attention_chunk_size": 32,
    "head_dim": 32,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 128,
}
"""Llama 4: layers that attend in chunks of 32 tokens, between others that attend to all."""
LATENT = {
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 96,
    "n_group": 1,
    "topk_group": 1,
}
"""DeepSeek: one vector a token from which keys and values are made, in the one size of CPUs."""


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
        (
            "deepseek_v32",
            "DeepseekV32ForCausalLM",
            {**LATENT, "q_lora_rank": 32, "index_topk": 16},
            "a model with sparse latent attention",
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


def test_layers_that_attend_in_chunks_are_exact_in_full_checkpoints(
    own_engine: EngineFactory, policies: list[Path], tmp_path: Path
) -> None:
    """Their metadata has a request for each chunk, which must not be taken for the requests. vLLM
    gives them cache blocks of their own if the first policy has no such layers."""
    sizes = {**CHUNKS, "no_rope_layers": [1, 0], "bos_token_id": 0, "eos_token_id": 1}
    folders = [
        save_policy(tmp_path / name, seed=seed, model_type="llama4_text", **sizes)
        for seed, name in enumerate(("chunks", "others"))
    ]
    batch = random_jobs(10, num_members=2, vocab_size=VOCAB_SIZE, seed=2, longest=100)
    for members in (folders, [folders[1], policies[0]], [policies[0], folders[0]]):
        sizes_of_steps = {"max_num_batched_tokens": 64, "max_num_seqs": 16, "block_size": 32}
        llm = own_engine(spec_of_folders(members), **sizes_of_steps)
        outputs = generate(llm, batch)
        assert Oracle(members).worst_error(batch, outputs) < TOLERANCE_NATS


@pytest.mark.parametrize("is_trunk", [True, False])
def test_other_models_that_attend_in_chunks_are_refused(
    adapted: AdaptedBase, policies: list[Path], tmp_path: Path, is_trunk: bool
) -> None:
    folder = Path(shutil.copytree(adapted.base, tmp_path / "chunks"))
    layers = [1, 0] if is_trunk else [1, 1]
    config = AutoConfig.for_model(
        "llama4_text",
        **{**SMALL, **CHUNKS, "no_rope_layers": layers},
        architectures=["Llama4ForCausalLM"],
    )
    config.save_pretrained(folder)
    spec = spec_of_folders([policies[0], folder])
    words = "'chunks' attends in chunks in every layer"
    if is_trunk:
        spec = AdaptedBase(folder, adapted.adapters, adapted.merged).spec()
        words = "attends in chunks .* that a shared trunk joins"
    arguments = EngineArgs(
        model=spec.checkpoints[0].model,
        hf_overrides=hf_overrides(spec),
        max_model_len=64,
        enforce_eager=True,
    )
    with pytest.raises(ValueError, match=words):
        arguments.create_engine_config()


def latent(folder: Path, *, seed: int, **settings: Any) -> Path:
    return save_policy(folder, seed=seed, model_type="deepseek_v2", **{**LATENT, **settings})


def test_latent_attention_is_exact_in_full_checkpoints(
    own_engine: EngineFactory, tmp_path: Path
) -> None:
    folders = [
        latent(tmp_path / "one", seed=0),
        latent(tmp_path / "two", seed=1, layers=3, hidden=96, q_lora_rank=32, n_routed_experts=8),
    ]
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    first, second = (load_file(each / "model.safetensors") for each in folders)
    second[name] = first[name]
    save_file(second, folders[1] / "model.safetensors", metadata={"format": "pt"})
    llm = own_engine(spec_of_folders(folders), attention_backend="CPU_MLA")
    for member in model_of(llm).members.values():
        attention = member.model.layers[0].self_attn
        held = attention.mla_attn.mla_attn.impl.kv_b_proj
        assert held is attention.kv_b_proj, (
            "attention computes with a layer that is not the model's"
        )
    batch = random_jobs(10, num_members=2, vocab_size=VOCAB_SIZE, seed=2, longest=100)
    assert Oracle(folders).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="the backend of AMX")
def test_latent_attention_by_amx_errs_no_more_than_transformers_in_bfloat16(
    own_engine: EngineFactory, tmp_path: Path
) -> None:
    """Prompts are prefilled in chunks, and parts of them are in the cache already."""
    folders = [
        latent(tmp_path / name, seed=seed, first_k_dense_replace=2)
        for seed, name in enumerate(("one", "two"))
    ]
    sizes = {"max_num_batched_tokens": 64, "max_num_seqs": 16, "block_size": 32}
    llm = own_engine(spec_of_folders(folders), dtype="bfloat16", **sizes)
    batch = random_jobs(10, num_members=2, vocab_size=VOCAB_SIZE, seed=2, longest=100)
    generate(llm, batch)
    outputs = generate(llm, batch)
    assert metric(llm, "vllm:prefix_cache_hits") > 0
    engine_rms, own_rms = rounding_errors(folders, batch, outputs, dtype=torch.bfloat16)
    assert 0 < engine_rms < 1.5 * own_rms


def test_latent_attention_beside_another_kind_is_refused(
    adapted: AdaptedBase, policies: list[Path], tmp_path: Path
) -> None:
    one = latent(tmp_path / "latent", seed=0)
    wide = latent(tmp_path / "wide", seed=1, v_head_dim=128)
    apart = "attend in different ways"
    trunk = AdaptedBase(one, adapted.adapters, adapted.merged).spec()
    flags = {"dtype": "float32", "attention_backend": "CPU_MLA"}
    cases: list[tuple[MixtureSpec, dict[str, Any], str]] = [
        (spec_of_folders([policies[0], one]), flags, f"{apart} .plain attention; num_att"),
        (spec_of_folders([one, policies[0]]), flags, f"{apart} .* v_head_dim 64; plain attention"),
        (spec_of_folders([one, wide]), flags, f"'latent' and 'wide' {apart}"),
        (trunk, flags, "'base' has multi-head latent attention .* serve full checkpoints"),
    ]
    if torch.cpu._is_amx_tile_supported():
        cases.append((spec_of_folders([one]), {"dtype": "float32"}, "give --dtype bfloat16"))
    for spec, options, words in cases:
        arguments = EngineArgs(
            model=spec.checkpoints[0].model,
            hf_overrides=hf_overrides(spec),
            max_model_len=64,
            enforce_eager=True,
            **options,
        )
        with pytest.raises(ValueError, match=words):
            arguments.create_engine_config()
