"""Mixtures of different members, spaces and options, each a real engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prefmix.mixing.spec import MixtureSpec, Policy
from support.checkpoints.tiny_policies import PROJECTED, VOCAB_SIZE, save_policy
from support.engines import INTERPRETED, EngineFactory, model_of, spec_of_folders
from support.exactness import (
    TOLERANCE_NATS,
    Job,
    Oracle,
    generate,
    random_jobs,
    rounding_errors,
    served,
)


def jobs(num_jobs: int, *, num_members: int, seed: int = 0) -> list[Job]:
    return random_jobs(num_jobs, num_members=num_members, vocab_size=VOCAB_SIZE, seed=seed)


def test_policies_of_different_architecture_and_size_are_exact(
    own_engine: EngineFactory, tmp_path: Path
) -> None:
    """Policies differ in depth, width, heads, tied embeddings, padding and sliding window."""
    folders = [
        save_policy(tmp_path / "llama", seed=0),
        save_policy(tmp_path / "wide", seed=1, layers=1, hidden=128, heads=4, kv_heads=2),
        save_policy(
            tmp_path / "qwen2",
            seed=2,
            model_type="qwen2",
            layers=3,
            hidden=96,
            heads=3,
            kv_heads=1,
            tie_word_embeddings=True,
        ),
        save_policy(tmp_path / "qwen3", seed=3, model_type="qwen3", vocab_size=VOCAB_SIZE + 64),
        save_policy(tmp_path / "window", seed=4, model_type="mistral", sliding_window=32),
    ]
    llm = own_engine(spec_of_folders(folders), max_num_batched_tokens=64)
    batch = jobs(24, num_members=5)
    assert any(len(job.prompt) > 64 for job in batch), "no prompt is longer than the window"
    assert Oracle(folders).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_policies_that_vllm_reads_in_its_own_way_are_exact(
    own_engine: EngineFactory, tmp_path: Path
) -> None:
    """Hidden states that are projected before the head; a window of 0, which is none at all."""
    folders = [
        save_policy(
            tmp_path / "experts",
            seed=0,
            model_type="qwen2_moe",
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            shared_expert_intermediate_size=64,
        ),
        save_policy(tmp_path / "opt", seed=1, **PROJECTED),
        save_policy(tmp_path / "window", seed=2, model_type="mistral", sliding_window=32),
    ]
    llm = own_engine(spec_of_folders(folders))
    batch = jobs(12, num_members=3)
    assert any(len(job.prompt) > 64 for job in batch), "no prompt is longer than the window"
    assert Oracle(folders).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_a_policy_with_experts_may_stand_behind_one_without(
    own_engine: EngineFactory, tmp_path: Path
) -> None:
    """vLLM makes the ranks' group that experts need for a model whose own config has some."""
    folders = [
        save_policy(tmp_path / "dense", seed=0),
        save_policy(
            tmp_path / "experts",
            seed=1,
            model_type="mixtral",
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
    ]
    llm = own_engine(spec_of_folders(folders))
    batch = jobs(8, num_members=2)
    assert Oracle(folders).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_a_padded_first_policy_is_cut_alike_whoever_runs_beside_it(
    own_engine: EngineFactory, tmp_path: Path
) -> None:
    """A one-hot request alone in its batch must not draw padding that others would ban."""
    folders = [
        save_policy(tmp_path / "padded", seed=1, vocab_size=VOCAB_SIZE + 64),
        save_policy(tmp_path / "plain", seed=2),
    ]
    llm, oracle = own_engine(spec_of_folders(folders)), Oracle(folders)
    alone = [Job(prompt=(5, 6, 7), weights=(1.0, 0.0))]
    beside = [*alone, Job(prompt=(5, 6), weights=(0.5, 0.5))]
    for batch in (alone, beside):
        assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_window_of_the_first_policy_does_not_leak(
    own_engine: EngineFactory, tmp_path: Path
) -> None:
    folders = [
        save_policy(tmp_path / "window", seed=4, model_type="mistral", sliding_window=32),
        save_policy(tmp_path / "llama", seed=0),
    ]
    llm = own_engine(spec_of_folders(folders))
    batch = [Job(prompt=tuple(range(2, 130)), weights=weights) for weights in ((0, 1), (0.4, 0.6))]
    assert Oracle(folders).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_affine_weights_with_a_reference_are_exact(
    own_engine: EngineFactory, policies: list[Path]
) -> None:
    """Negative weights and weights above 1: DExperts, DeRa and the like."""
    spec = spec_of_folders(policies[:2], weight_space="affine")
    reference = Policy(name="reference", model=str(policies[2]))
    spec = MixtureSpec(policies=spec.policies, reference=reference, weight_space="affine")
    llm = own_engine(spec)
    vectors = [(1.5, 0.0, -0.5), (0.7, 0.7, -0.4), (0.0, 0.0, 1.0), (-1.0, 2.0, 0.0)]
    batch = [
        Job(prompt=(3, 4, 5, index + 6), weights=weights, seed=index)
        for index, weights in enumerate(vectors)
    ]
    assert Oracle(policies).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_one_hot_weights_reproduce_the_policy_served_alone(
    engine: EngineFactory, mixture: tuple[MixtureSpec, list[Path]]
) -> None:
    from vllm import SamplingParams

    spec, folders = mixture
    prompts = [job.prompt for job in jobs(6, num_members=1)]
    llm = engine(spec)
    answers = {}
    for index, folder in enumerate(folders):
        weights = tuple(np.eye(3)[index])
        batch = [Job(prompt=prompt, weights=weights, max_tokens=20) for prompt in prompts]
        outputs = generate(llm, batch, temperature=0.0)
        answers[folder] = [served(output.outputs[0])[0] for output in outputs]
    for folder in folders:
        alone = engine(folder)
        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
        outputs = alone.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False
        )
        assert [list(output.outputs[0].token_ids) for output in outputs] == answers[folder]


def test_permuting_policies_and_weights_together_changes_nothing(
    engine: EngineFactory, mixture: tuple[MixtureSpec, list[Path]]
) -> None:
    spec, _ = mixture
    batch = jobs(10, num_members=3, seed=6)
    permuted = [
        Job(prompt=job.prompt, weights=job.weights[::-1], max_tokens=job.max_tokens)
        for job in batch
    ]
    straight = generate(engine(spec), batch, temperature=0.0)
    reversed_spec = replace(spec, policies=spec.policies[::-1])
    reverse = generate(engine(reversed_spec), permuted, temperature=0.0)
    for one, other in zip(straight, reverse, strict=True):
        tokens, logprobs = served(one.outputs[0])
        other_tokens, other_logprobs = served(other.outputs[0])
        assert tokens == other_tokens
        assert logprobs == pytest.approx(other_logprobs, abs=TOLERANCE_NATS)


def test_one_policy_alone_is_a_mixture_too(
    engine: EngineFactory, mixture: tuple[MixtureSpec, list[Path]]
) -> None:
    spec, folders = mixture
    llm = engine(replace(spec, policies=spec.policies[:1]))
    batch = [
        Job(prompt=tuple(range(4, 7 + 40 * index)), weights=(1.0,), seed=index)
        for index in range(3)
    ]
    assert Oracle(folders[:1]).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_layers_in_common_are_stored_once_and_change_nothing(
    own_engine: EngineFactory, policies: list[Path], tmp_path: Path
) -> None:
    """A policy tuned from another with its embeddings and first layer frozen."""
    tuned = save_policy(tmp_path / "tuned", seed=7)
    frozen = load_file(policies[0] / "model.safetensors")
    parameters = load_file(tuned / "model.safetensors")
    common = [name for name in frozen if "embed" in name or "layers.0." in name]
    save_file(
        {**parameters, **{name: frozen[name] for name in common}},
        tuned / "model.safetensors",
        metadata={"format": "pt"},
    )
    folders = [policies[0], tuned, policies[1]]
    llm = own_engine(spec_of_folders(folders))
    first, second, third = model_of(llm).members.values()
    assert second.model.layers[0].mlp.down_proj is first.model.layers[0].mlp.down_proj
    assert second.model.layers[1].mlp.down_proj is not first.model.layers[1].mlp.down_proj
    assert third.model.embed_tokens is not first.model.embed_tokens
    batch = jobs(16, num_members=3, seed=12)
    assert Oracle(folders).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_one_product_over_all_heads_is_exact(
    own_engine: EngineFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs use one product unless a head begins with a norm. Widths differ; one head is padded."""
    from prefmix.mixing.models.lm_heads import plain_heads

    folders = [
        save_policy(tmp_path / "wide", seed=1, hidden=128, vocab_size=VOCAB_SIZE + 64),
        save_policy(tmp_path / "tied", seed=2, tie_word_embeddings=True),
        save_policy(tmp_path / "plain", seed=3),
    ]
    llm = own_engine(spec_of_folders(folders))
    model = model_of(llm)
    members = list(model.members.values())
    monkeypatch.setattr(model, "plain_heads", plain_heads(members, torch.float32), raising=False)
    assert model.plain_heads is not None
    batch = jobs(16, num_members=3, seed=13)
    assert Oracle(folders).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    compute_logits, norm = members[1].compute_logits, members[1].model.norm
    monkeypatch.setattr(members[1], "compute_logits", lambda rows: compute_logits(norm(rows)))
    assert plain_heads(members, torch.float32) is None


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_broken_policy_harms_only_rows_that_give_it_weight(
    own_engine: EngineFactory, policies: list[Path], tmp_path: Path, poison: float
) -> None:
    """All logits of the policy are NaN or infinite; it runs because a neighbour gives it weight."""
    broken = save_policy(tmp_path / "broken", seed=9)
    parameters = load_file(broken / "model.safetensors")
    parameters["lm_head.weight"].fill_(poison)
    save_file(parameters, broken / "model.safetensors", metadata={"format": "pt"})
    llm = own_engine(spec_of_folders([*policies[:2], broken]))
    healthy = [
        Job(prompt=job.prompt, weights=(*job.weights, 0.0), seed=job.seed)
        for job in jobs(8, num_members=2)
    ]
    asks_for_it = Job(prompt=(7, 7, 7), weights=(0.5, 0.0, 0.5), max_tokens=30)
    outputs = generate(llm, [asks_for_it, *healthy])[1:]
    oracle = Oracle(policies[:2])
    two_members = [
        Job(prompt=job.prompt, weights=job.weights[:2], max_tokens=job.max_tokens)
        for job in healthy
    ]
    assert oracle.worst_error(two_members, outputs) < TOLERANCE_NATS


def test_bfloat16_errs_no_more_than_transformers_in_bfloat16(
    own_engine: EngineFactory, policies: list[Path]
) -> None:
    """The tolerance is the error of the same mixture in transformers' bfloat16, times 1.5.

    Weights travel as raw float32 bits inside bfloat16 rows, so they cost no precision.
    """
    batch = jobs(24, num_members=3, seed=8)
    outputs = generate(own_engine(spec_of_folders(policies), dtype="bfloat16"), batch)
    engine_rms, own_rms = rounding_errors(policies, batch, outputs, dtype=torch.bfloat16)
    assert 0 < engine_rms < 1.5 * own_rms


@pytest.mark.skipif(INTERPRETED, reason="torch.compile under Triton's interpreter is not tried")
def test_compiled_policies_of_one_shape_keep_their_own_parameters(
    own_engine: EngineFactory, policies: list[Path]
) -> None:
    """Policies of one shape share compiled code, but each has its own parameters."""
    llm = own_engine(spec_of_folders(policies), enforce_eager=False)
    batch = jobs(12, num_members=3, seed=10)
    assert Oracle(policies).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_demo_policies_are_exact_on_real_prompts(own_engine: EngineFactory) -> None:
    """Trained policies, their own chat template, 36 requests of different weights at once."""
    from prefmix.policies.demo import CHECKPOINTS, EVALUATION_PROMPTS

    folders = [CHECKPOINTS / name for name in ("positive", "concise", "polite")]
    llm = own_engine(spec_of_folders(folders), max_num_batched_tokens=64)
    tokenizer = llm.get_tokenizer()
    rng = np.random.default_rng(0)
    batch = []
    for index, prompt in enumerate(EVALUATION_PROMPTS[:36]):
        message = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
        weights = tuple(np.eye(3)[index % 3] if index % 4 == 0 else rng.dirichlet(np.ones(3)))
        batch.append(Job(prompt=tuple(ids), weights=weights, max_tokens=40, seed=index))
    outputs = generate(llm, batch, ignore_eos=False)
    assert Oracle(folders).worst_error(batch, outputs) < TOLERANCE_NATS
