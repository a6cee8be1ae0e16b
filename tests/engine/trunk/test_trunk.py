"""The shared trunk where it differs from full checkpoints: adapters, architectures, LM head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prefmix.mixing.models.joined_adapters import StackedFactors
from prefmix.mixing.ways_to_mix import MIXINGS
from support.checkpoints.tiny_adapters import save_adapter, save_merged
from support.checkpoints.tiny_policies import PROJECTED, VOCAB_SIZE, save_policy
from support.engines import (
    INTERPRETED,
    RUNNER,
    AdaptedBase,
    EngineFactory,
    model_of,
    spec_of_folders,
)
from support.exactness import (
    TOLERANCE_NATS,
    Job,
    Oracle,
    both_ways,
    generate,
    random_jobs,
    rounding_errors,
    served,
)

FUSED = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
"""The linear layers of models whose file has queries, keys and values in one matrix."""


def jobs(num_jobs: int, *, num_members: int, seed: int = 0) -> list[Job]:
    return random_jobs(num_jobs, num_members=num_members, vocab_size=VOCAB_SIZE, seed=seed)


def served_base(root: Path, *, num_adapters: int = 2, **options: Any) -> AdaptedBase:
    """A base of some architecture with adapters of its linear layers, by the file's names."""
    words = {name: options.pop(name) for name in ("targets", "size") if name in options}
    base = save_policy(root / "base", seed=0, **options)
    adapters = [
        save_adapter(root / f"a{index}", base, seed=index + 1, **words)
        for index in range(num_adapters)
    ]
    merged = [save_merged(root / f"m{index}", base, each) for index, each in enumerate(adapters)]
    return AdaptedBase(base=base, adapters=adapters, merged=merged)


def keep_adapters_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters as quantised layers hold them."""
    for join in ("join_factors", "stack_factors"):
        monkeypatch.setattr(f"prefmix.mixing.models.adapter_linears.{join}", lambda *_: None)


def run_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass of a GPU."""
    monkeypatch.setattr("prefmix.mixing.models.base.takes_any_rows", lambda device: False)


@pytest.fixture
def undecorated(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM rewrites the classes of transformers that it compiles; the oracle needs them too."""
    monkeypatch.setattr(
        "vllm.model_executor.models.transformers.base.support_torch_compile",
        lambda **options: lambda model_class: model_class,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "qwen2", "kv_heads": 1},
        {"model_type": "qwen3", "vocab_size": VOCAB_SIZE + 64},
        {"model_type": "mistral", "sliding_window": 32},
        {"model_type": "gemma2", "tie_word_embeddings": True, "sliding_window": 32},
        {"model_type": "gemma3_text", "tie_word_embeddings": True, "sliding_window": 32},
        {
            "model_type": "phi3",
            "targets": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
            "kv_heads": 1,
        },
        {"model_type": "olmo2"},
        # Larger factors would make a model in which float32 errs by more than the tolerance.
        {"model_type": "stablelm", "size": 0.12},
        {"model_type": "gpt2", "targets": ("c_attn", "c_proj", "c_fc")},
        {
            "model_type": "qwen3_moe",
            "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate"),
            "num_experts": 16,  # more than the adapters' ranks
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
        },
        {**PROJECTED, "targets": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "project_out")},
        {"model_type": "gpt_neox", "targets": FUSED},
        {
            "model_type": "falcon",
            "new_decoder_architecture": True,
            "num_kv_heads": 1,
            "targets": FUSED,
        },
        {
            "model_type": "falcon",
            "new_decoder_architecture": False,
            "multi_query": False,
            "alibi": False,
            "targets": FUSED,
        },
        {
            "model_type": "gemma4_text",
            "attention_k_eq_v": True,
            "tie_word_embeddings": True,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention"],
            "global_head_dim": 32,
            "kv_heads": 1,
            "num_global_key_value_heads": 1,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": VOCAB_SIZE,
        },
        {
            "model_type": "gemma4_text",
            "layers": 4,
            "tie_word_embeddings": True,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "global_head_dim": 64,
            "kv_heads": 1,
            "num_global_key_value_heads": 1,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": VOCAB_SIZE,
        },
    ],
    ids=lambda options: options["model_type"],
)
@pytest.mark.usefixtures("undecorated")
def test_any_architecture_of_plain_attention_is_exact(
    own_engine: EngineFactory, tmp_path: Path, options: dict[str, Any]
) -> None:
    """The architectures have biases, head norms, windows, tied embeddings, soft-caps, projections
    fused or transposed in the file or before the head, transformers' own code, experts and adapted
    routers, fusions that vLLM does not declare, or rows that it permutes or uses twice."""
    served = served_base(tmp_path, **options)
    llm = own_engine(served.spec(), max_num_batched_tokens=64)
    batch = both_ways(jobs(10, num_members=2))
    assert Oracle(served.merged).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_a_trunk_of_bloom_is_its_merged_checkpoints(
    own_engine: EngineFactory, tmp_path: Path
) -> None:
    """vLLM's BLOOM is not transformers' to the last digits, so vLLM's two layouts are compared."""
    bloom = {"model_type": "bloom", "n_layer": 2, "n_head": 2, "tie_word_embeddings": True}
    both = served_base(tmp_path, targets=FUSED, **bloom)
    batch = [replace(job, weights=(1.0, 0.0)) for job in jobs(6, num_members=2)]
    full = generate(own_engine(spec_of_folders(both.merged)), batch, temperature=0.0)
    trunk = generate(own_engine(both.spec()), batch, temperature=0.0)
    for one, other in zip(full, trunk, strict=True):
        tokens, logprobs = served(one.outputs[0])
        other_tokens, other_logprobs = served(other.outputs[0])
        assert tokens == other_tokens
        assert logprobs == pytest.approx(other_logprobs, abs=TOLERANCE_NATS)


@pytest.mark.usefixtures("undecorated")
@pytest.mark.parametrize("rows", ["any", "all alike"])
def test_adapters_apart_are_exact_in_models_of_transformers_own_code(
    own_engine: EngineFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str
) -> None:
    """Models of transformers' own code pass [1, R, D] to their layers."""
    keep_adapters_apart(monkeypatch)
    if rows == "all alike":
        run_everyone(monkeypatch)
    served = served_base(tmp_path, model_type="olmo2")
    llm = own_engine(served.spec(reference=served.reference()), max_num_batched_tokens=64)
    assert type(model_of(llm).trunk.base).__name__ == "TransformersForCausalLM"
    batch = both_ways(jobs(10, num_members=3))
    oracle = Oracle([*served.merged, served.base])
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    alone = [Job(prompt=(9, 8, 7), weights=(0.0, 0.5, 0.5))]
    assert oracle.worst_error(alone, generate(llm, alone)) < TOLERANCE_NATS


def test_the_reference_is_the_base_at_any_weight(
    own_engine: EngineFactory, adapted: AdaptedBase
) -> None:
    """The weights are affine: negative, above 1, or all on the base."""
    llm = own_engine(adapted.spec(reference=adapted.reference(), weight_space="affine"))
    vectors = [
        (1.5, 0.0, 0.0, -0.5),
        (0.7, 0.7, -0.2, -0.2),
        (0.0, 0.0, 0.0, 1.0),
        (-1.0, 2.0, 0.0, 0.0),
    ]
    batch = [
        Job(prompt=(3, 4, 5, index + 6), weights=weights, mixing=mixing, seed=index)
        for index, weights in enumerate(vectors)
        for mixing in MIXINGS
    ]
    oracle = Oracle([*adapted.merged, adapted.base])
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    for job in batch:  # alone, only the members that it gives weight to run
        assert oracle.worst_error([job], generate(llm, [job])) < TOLERANCE_NATS


def test_adapters_that_share_no_layer_are_exact_at_any_affine_weights(
    own_engine: EngineFactory, tmp_path: Path
) -> None:
    """One adapter's factors are larger than the matrices that it changes, and stay apart."""
    base = save_policy(tmp_path / "base", seed=0, kv_heads=1)
    adapters = [
        save_adapter(tmp_path / "queries", base, seed=1, rank=2, targets=("q_proj",)),
        save_adapter(
            tmp_path / "wide", base, seed=2, rank=40, targets=("o_proj", "down_proj"), size=0.1
        ),
        save_adapter(
            tmp_path / "last", base, seed=3, rank=1, targets=("v_proj", "gate_proj"), layers=[1]
        ),
    ]
    merged = [
        save_merged(tmp_path / f"m{index}", base, each) for index, each in enumerate(adapters)
    ]
    served = AdaptedBase(base=base, adapters=adapters, merged=merged)
    llm = own_engine(served.spec(reference=served.reference(), weight_space="affine"))
    vectors = [
        (1.0, 0.0, 0.0, 0.0),
        (0.0, 0.0, 1.0, 0.0),
        (4.0, -3.5, 0.5, 0.0),
        (-2.0, 0.0, 3.0, 0.0),
        (1e-40, -0.0, 0.7, 0.3),
        (0.0, 2.5, -2.5, 1.0),
    ]
    batch = [
        Job(prompt=(3, 4, 5), weights=weights, mixing=mixing, seed=index)
        for index, weights in enumerate(vectors)
        for mixing in MIXINGS
    ]
    oracle = Oracle([*merged, base])
    for _ in range(2):  # the second time in another order, beside other neighbours
        assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
        batch.reverse()


@pytest.mark.skipif(INTERPRETED, reason="torch.compile under Triton's interpreter is not tried")
def test_compiled_trunk_is_exact_for_every_set_of_members(
    own_engine: EngineFactory, adapted: AdaptedBase
) -> None:
    """One graph serves any members with any number of rows."""
    llm = own_engine(adapted.spec(reference=adapted.reference()), enforce_eager=False)
    assert not model_of(llm).trunk.do_not_compile
    oracle = Oracle([*adapted.merged, adapted.base])
    batch = both_ways(jobs(12, num_members=4, seed=10))
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    for weights in ((0.2, 0.3, 0.5, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)):
        alone = [Job(prompt=(9, 8, 7), weights=weights)]
        assert oracle.worst_error(alone, generate(llm, alone)) < TOLERANCE_NATS


@pytest.mark.skipif(INTERPRETED, reason="torch.compile under Triton's interpreter is not tried")
@pytest.mark.usefixtures("undecorated")
def test_a_base_that_vllm_does_not_compile_is_not_compiled(
    own_engine: EngineFactory, tmp_path: Path
) -> None:
    """Dynamic rotary embeddings of transformers read the positions, which no graph can."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    served = served_base(tmp_path, model_type="olmo2", rope_parameters=rope)
    llm = own_engine(served.spec(), enforce_eager=False)
    assert model_of(llm).trunk.do_not_compile
    batch = jobs(4, num_members=2)
    assert Oracle(served.merged).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_members_that_all_run_all_tokens_are_exact(
    own_engine: EngineFactory, adapted: AdaptedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GPUs, where every lora_A is a part of its layer's own matrix. V2 leaves out what no
    request needs (test_needed_rows.py)."""
    run_everyone(monkeypatch)
    llm = own_engine(adapted.spec(reference=adapted.reference()))
    kinds = {type(method.joined) for method in model_of(llm).adapted.values()}
    assert kinds == {StackedFactors}
    batch = both_ways(jobs(12, num_members=4, seed=11))
    oracle = Oracle([*adapted.merged, adapted.base])
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    for mixing in MIXINGS:
        alone = [Job(prompt=(9, 8, 7), weights=(0.0, 0.5, 0.0, 0.5), mixing=mixing)]
        assert oracle.worst_error(alone, generate(llm, alone)) < TOLERANCE_NATS
        if RUNNER == "v1":
            assert model_of(llm).step.everyone_runs, "V1 has no list of rows for a GPU's pass"


def test_bfloat16_errs_no_more_than_transformers_in_bfloat16(
    own_engine: EngineFactory, adapted: AdaptedBase
) -> None:
    """Mixed hidden states are rounded once more, but each policy's LM head input once less."""
    batch = jobs(24, num_members=3, seed=8)
    outputs = generate(own_engine(adapted.spec(), dtype="bfloat16"), batch)
    engine_rms, own_rms = rounding_errors(adapted.merged, batch, outputs, dtype=torch.bfloat16)
    assert 0 < engine_rms < 1.5 * own_rms
