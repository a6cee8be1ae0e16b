"""The shared trunk where it differs from full checkpoints: adapters, architectures, LM head."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RUNNER, AdaptedBase, EngineFactory, model_of
from exactness import TOLERANCE_NATS, Job, Oracle, generate, random_jobs, rounding_errors
from safetensors.torch import load_file, save_file
from tiny_adapters import save_adapter, save_merged
from tiny_policies import VOCAB_SIZE, save_policy

from mixing.adapters import AdapterError
from mixing.spec import MixtureSpec, Policy


def jobs(num_jobs: int, *, num_members: int, seed: int = 0) -> list[Job]:
    return random_jobs(num_jobs, num_members=num_members, vocab_size=VOCAB_SIZE, seed=seed)


def served_base(root: Path, *, num_adapters: int = 2, **options: Any) -> AdaptedBase:
    """A base of some architecture with adapters of what its checkpoint calls linear layers."""
    targets = options.pop("targets", None)
    base = save_policy(root / "base", seed=0, **options)
    words = {} if targets is None else {"targets": targets}
    adapters = [
        save_adapter(root / f"a{index}", base, seed=index + 1, **words)
        for index in range(num_adapters)
    ]
    merged = [save_merged(root / f"m{index}", base, each) for index, each in enumerate(adapters)]
    return AdaptedBase(base=base, adapters=adapters, merged=merged)


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
    ],
    ids=lambda options: options["model_type"],
)
@pytest.mark.usefixtures("undecorated")
def test_any_architecture_of_plain_attention_is_exact(
    engine: EngineFactory, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Biases, head norms, windows, tied embeddings, soft-caps, projections fused in the file."""
    served = served_base(tmp_path, **options)
    llm = engine(served.spec(), max_num_batched_tokens=64)
    batch = jobs(10, num_members=2)
    assert Oracle(served.merged).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


@pytest.mark.parametrize("model_type", ["olmo2", "smollm3"])
@pytest.mark.usefixtures("undecorated")
def test_batched_products_are_exact_in_models_of_transformers_own_code(
    engine: EngineFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    """They hand their layers [1, R, D]. Some rows are spared, others belong to every member."""
    monkeypatch.setattr("mixing.adapted_linears.join_factors", lambda *arguments: None)
    served = served_base(tmp_path, model_type=model_type)
    llm = engine(served.spec(reference=served.reference()), max_num_batched_tokens=64)
    assert type(model_of(llm).trunk.base).__name__ == "TransformersForCausalLM"
    batch = jobs(10, num_members=3)
    oracle = Oracle([*served.merged, served.base])
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    alone = [Job(prompt=(9, 8, 7), weights=(0.0, 0.5, 0.5))]
    assert oracle.worst_error(alone, generate(llm, alone)) < TOLERANCE_NATS


def test_the_reference_is_the_base_at_any_weight(
    engine: EngineFactory, adapted: AdaptedBase
) -> None:
    """Affine weights: negative, above 1, and the base alone."""
    llm = engine(adapted.spec(reference=adapted.reference(), weight_space="affine"))
    vectors = [
        (1.5, 0.0, 0.0, -0.5),
        (0.7, 0.7, -0.2, -0.2),
        (0.0, 0.0, 0.0, 1.0),
        (-1.0, 2.0, 0.0, 0.0),
    ]
    batch = [
        Job(prompt=(3, 4, 5, index + 6), weights=weights, seed=index)
        for index, weights in enumerate(vectors)
    ]
    oracle = Oracle([*adapted.merged, adapted.base])
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    for job in batch:  # alone, only the members that it gives weight to run
        assert oracle.worst_error([job], generate(llm, [job])) < TOLERANCE_NATS


@pytest.mark.skipif(RUNNER == "v2", reason="torch.compile under Triton's interpreter is not tried")
def test_compiled_trunk_is_exact_for_every_set_of_members(
    engine: EngineFactory, adapted: AdaptedBase
) -> None:
    """All policies run as compiled; one of them, or the reference too, layer by layer."""
    llm = engine(adapted.spec(reference=adapted.reference()), enforce_eager=False)
    assert not model_of(llm).trunk.do_not_compile
    oracle = Oracle([*adapted.merged, adapted.base])
    batch = jobs(12, num_members=4, seed=10)
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    for weights in ((0.2, 0.3, 0.5, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)):
        alone = [Job(prompt=(9, 8, 7), weights=weights)]
        assert oracle.worst_error(alone, generate(llm, alone)) < TOLERANCE_NATS


@pytest.mark.skipif(RUNNER == "v2", reason="torch.compile under Triton's interpreter is not tried")
@pytest.mark.usefixtures("undecorated")
def test_a_base_that_vllm_does_not_compile_is_not_compiled(
    engine: EngineFactory, tmp_path: Path
) -> None:
    """Dynamic rotary embeddings of transformers look at the positions: no graph can."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    served = served_base(tmp_path, model_type="olmo2", rope_parameters=rope)
    llm = engine(served.spec(), enforce_eager=False)
    assert model_of(llm).trunk.do_not_compile
    batch = jobs(4, num_members=2)
    assert Oracle(served.merged).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_batched_products_are_exact(
    engine: EngineFactory, adapted: AdaptedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of GPUs and quantised layers, and of adapters too wide to join a layer's matrix."""
    monkeypatch.setattr("mixing.adapted_linears.join_factors", lambda *arguments: None)
    llm = engine(adapted.spec(reference=adapted.reference()))
    batch = jobs(12, num_members=4, seed=11)
    oracle = Oracle([*adapted.merged, adapted.base])
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    alone = [Job(prompt=(9, 8, 7), weights=(0.0, 0.5, 0.0, 0.5))]
    assert oracle.worst_error(alone, generate(llm, alone)) < TOLERANCE_NATS


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_an_adapter_with_nan_or_too_large_numbers_is_refused(
    engine: EngineFactory, adapted: AdaptedBase, tmp_path: Path, value: float
) -> None:
    """Doubled by its alpha the larger is infinite, and would spoil the other adapters' rows."""
    tensors = load_file(adapted.adapters[0] / "adapter_model.safetensors")
    next(tensors[key] for key in tensors if "lora_B" in key)[0, 0] = value
    broken = tmp_path / "broken"
    broken.mkdir()
    save_file(tensors, broken / "adapter_model.safetensors")
    shutil.copy(adapted.adapters[0] / "adapter_config.json", broken)
    spec = MixtureSpec(policies=(Policy(name="x", model=str(broken)),), base=str(adapted.base))
    with pytest.raises(AdapterError, match=r"policy 'x'.*holds NaN or infinite numbers"):
        engine(spec)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(tokens, rows that go through the base) of every pass."""
    from mixing.trunk import StackedTrunk

    sizes: list[tuple[int, int]] = []
    original = StackedTrunk.forward

    def counting(self: Any, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden = original(self, input_ids, positions)
        sizes.append((input_ids.shape[0], hidden.shape[0]))
        return hidden

    monkeypatch.setattr(StackedTrunk, "forward", counting)
    return sizes


def test_a_one_hot_batch_runs_one_member(
    engine: EngineFactory, adapted: AdaptedBase, passes: list[tuple[int, int]]
) -> None:
    llm = engine(adapted.spec())
    for weights, members in (((0.0, 1.0, 0.0), 1), ((0.5, 0.0, 0.5), 2), ((0.2, 0.3, 0.5), 3)):
        passes.clear()
        generate(llm, [Job(prompt=(4, 5, 6), weights=weights)] * 3)
        assert passes
        assert all(rows == members * tokens for tokens, rows in passes), passes


@pytest.mark.parametrize("way", ["joined", "batched products"])
def test_requests_for_one_policy_each_pay_for_that_policy(
    engine: EngineFactory,
    adapted: AdaptedBase,
    passes: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """Different policies in one batch, prompts in chunks; then beside requests that need more."""
    if way == "batched products":
        monkeypatch.setattr("mixing.adapted_linears.join_factors", lambda *arguments: None)
    llm = engine(adapted.spec(reference=adapted.reference()), max_num_batched_tokens=64)
    oracle = Oracle([*adapted.merged, adapted.base])
    one_hot = [
        Job(
            prompt=tuple(range(4, 14 + 9 * index)),
            weights=tuple(float(member == index % 4) for member in range(4)),
            max_tokens=6 + index,
            seed=index,
        )
        for index in range(9)
    ]
    passes.clear()
    assert oracle.worst_error(one_hot, generate(llm, one_hot)) < TOLERANCE_NATS
    assert all(rows == tokens for tokens, rows in passes), passes
    passes.clear()
    more = [Job(prompt=(7, 8, 9), weights=(0.5, 0.0, 0.2, 0.3), max_tokens=30)]
    mixed = [*one_hot, *more]
    assert oracle.worst_error(mixed, generate(llm, mixed)) < TOLERANCE_NATS
    assert any(tokens < rows < 2 * tokens for tokens, rows in passes), passes


def test_bfloat16_errs_no_more_than_transformers_in_bfloat16(
    engine: EngineFactory, adapted: AdaptedBase
) -> None:
    """Mixed hidden states are rounded once more, the LM head's input of every policy once less."""
    batch = jobs(24, num_members=3, seed=8)
    outputs = generate(engine(adapted.spec(), dtype="bfloat16"), batch)
    engine_rms, own_rms = rounding_errors(adapted.merged, batch, outputs, dtype=torch.bfloat16)
    assert 0 < engine_rms < 1.5 * own_rms


def test_an_adapter_of_another_model_is_refused_by_name(
    engine: EngineFactory, adapted: AdaptedBase, tmp_path: Path
) -> None:
    wide = save_policy(tmp_path / "wide", seed=5, hidden=128)
    deep = save_policy(tmp_path / "deep", seed=5, layers=3)
    for other, words in ((wide, "inputs and .* but the base"), (deep, "model.layers.2")):
        foreign = save_adapter(tmp_path / f"of_{other.name}", other, seed=1)
        spec = MixtureSpec(
            policies=(Policy(name="foreign", model=str(foreign)),), base=str(adapted.base)
        )
        with pytest.raises(Exception, match=f"'foreign'.*{words}"):
            engine(spec)


def damaged(folder: Path, source: Path, kind: str) -> Path:
    """A copy of an adapter with one thing wrong."""
    config = json.loads((source / "adapter_config.json").read_text())
    tensors = load_file(source / "adapter_model.safetensors")
    some = next(iter(tensors)).removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")
    folder.mkdir()
    if kind == "dora":
        config["use_dora"] = True
    elif kind == "bias":
        config["bias"] = "all"
    elif kind == "modules_to_save":
        config["modules_to_save"] = ["embed_tokens"]
    elif kind == "lm_head":
        for side, shape in (("A", (4, 64)), ("B", (VOCAB_SIZE, 4))):
            tensors[f"base_model.model.lm_head.lora_{side}.weight"] = torch.zeros(shape)
    elif kind == "embedding lora":
        for side, shape in (("A", (4, VOCAB_SIZE)), ("B", (64, 4))):
            tensors[f"base_model.model.model.embed_tokens.lora_embedding_{side}"] = torch.zeros(
                shape
            )
    elif kind == "embedding":
        tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(VOCAB_SIZE, 64)
    elif kind == "pissa":
        config["init_lora_weights"] = "pissa_niter_16"
    elif kind == "ia3":
        config = {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []}
        tensors = {f"{some}.ia3_l": torch.zeros(64, 1)}
    elif kind == "list":
        config = [config]
    elif kind == "pattern":
        config["rank_pattern"] = {"(q_proj": 4}
    elif kind == "magnitude":
        tensors[f"{some}.lora_magnitude_vector"] = torch.zeros(4)
    elif kind == "half":
        del tensors[f"{some}.lora_B.weight"]
    elif kind == "rank":
        config["r"] = 5
    elif kind == "empty":
        tensors = {}
    if kind != "no config":
        (folder / "adapter_config.json").write_text(
            "{" if kind == "bad json" else json.dumps(config)
        )
    if kind == "pickle":
        torch.save(tensors, folder / "adapter_model.bin")
    elif kind == "cut off":
        (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    else:
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dora", ["DoRA", "merge_and_unload"]),
        ("bias", ["bias is 'all'", "merge_and_unload"]),
        ("modules_to_save", ["modules_to_save", "merge_and_unload"]),
        ("lm_head", ["'lm_head'", "share the base's embeddings and LM head", "--policy"]),
        ("embedding lora", ["embed_tokens", "share the base's embeddings", "--policy"]),
        ("embedding", ["'model.embed_tokens.weight'", "share the base's embeddings", "--policy"]),
        ("pissa", ["init_lora_weights='pissa_niter_16'", "merge_and_unload", "--policy"]),
        ("ia3", ["is of type 'IA3'", "peft_type 'LORA'", "merge_and_unload", "--policy"]),
        ("list", ["unreadable adapter_config.json", "no JSON object"]),
        ("pattern", ["unreadable adapter_config.json", "unterminated subpattern"]),
        ("magnitude", ["lora_magnitude_vector", "merge_and_unload"]),
        ("half", ["has lora_A of", "not its other factor"]),
        ("rank", ["adapter_config.json says 5"]),
        ("empty", ["holds no tensors"]),
        ("no config", ["no adapter_config.json", "save_pretrained"]),
        ("bad json", ["unreadable adapter_config.json"]),
        ("pickle", ["no adapter_model.safetensors", "adapter_model.bin", "safe_serialization"]),
        ("cut off", ["cannot be read", "adapter_model.safetensors"]),
    ],
)
def test_a_damaged_adapter_is_refused_before_an_engine_starts(
    adapted: AdaptedBase, tmp_path: Path, kind: str, words: list[str]
) -> None:
    from mixing.compatibility import CompatibilityError, check_members

    broken = Policy(name="broken", model=str(damaged(tmp_path / "x", adapted.adapters[0], kind)))
    spec = MixtureSpec(policies=(broken,), base=str(adapted.base))
    with pytest.raises(CompatibilityError) as caught:
        check_members(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in ["'broken'", *words] if word not in message] == [], message


def test_a_full_checkpoint_given_as_adapter_is_told_so(adapted: AdaptedBase) -> None:
    from mixing.compatibility import CompatibilityError, check_members

    policy = Policy(name="whole", model=str(adapted.merged[0]))
    with pytest.raises(CompatibilityError, match="full checkpoint: serve it with --policy"):
        check_members(MixtureSpec(policies=(policy,), base=str(adapted.base)))
