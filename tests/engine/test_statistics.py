"""The engine's statistics of its own mixture equal those of transformers on the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefmix.mixing import wire
from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import AdaptedBase, EngineFactory, model_of, spec_of_folders
from support.exactness import Job, Oracle, random_jobs, served

TOLERANCE_NATS = 1e-3
"""The allowed error of KL, entropy and log-probs in float32."""

MEASURED = {"seed": 1}
"""Settings that no other test uses, as an engine goes on measuring once it has begun."""


def generate(llm: Any, jobs: list[Job], keys: list[str | None], **sampling: Any) -> list[Any]:
    from vllm import SamplingParams

    params = [
        SamplingParams(
            max_tokens=job.max_tokens,
            seed=job.seed,
            ignore_eos=True,
            logprobs=0,
            extra_args={**wire.to_extra_args(job.weights, job.mixing), wire.MEASURE_KEY: key},
            **sampling,
        )
        for job, key in zip(jobs, keys, strict=True)
    ]
    prompts = [{"prompt_token_ids": list(job.prompt)} for job in jobs]
    return llm.generate(prompts, params, use_tqdm=False)


def truth(oracle: Oracle, job: Job, tokens: list[int]) -> dict[str, np.ndarray]:
    """Each generated token's log-prob, entropy, log Z, and by member log-prob, KL and agreement."""
    whole = (*job.prompt, *tokens)
    num_members = len(job.weights)
    at = slice(len(job.prompt) - 1, len(whole) - 1)
    mixed = oracle.logprobs(whole, job.weights)[at]
    members = torch.stack(
        [oracle.logprobs(whole, tuple(np.eye(num_members)[m]))[at] for m in range(num_members)]
    )
    rows = torch.arange(len(tokens))
    drawn = torch.tensor(tokens)
    weights = torch.tensor(job.weights, dtype=members.dtype)
    log_z = torch.logsumexp((weights[:, None, None] * members).sum(0), dim=-1)
    return {
        "logprob": mixed[rows, drawn].numpy(),
        "entropy": -(mixed.exp() * mixed).sum(-1).numpy(),
        "log_z": log_z.numpy(),
        "members": members[:, rows, drawn].T.numpy(),
        "kl": (mixed.exp() * (mixed - members)).sum(-1).T.numpy(),
        "agrees": (members.argmax(-1) == drawn).T.numpy(),
    }


@pytest.mark.parametrize("layout", ["full checkpoints", "shared trunk"])
def test_measured_figures_are_those_of_transformers(
    engine: EngineFactory, policies: list[Path], adapted: AdaptedBase, layout: str
) -> None:
    """Every second request of a mixed batch with chunked prompts asks; every step is sampled."""
    spec, folders = spec_of_folders(policies), policies
    if layout == "shared trunk":
        spec, folders = adapted.spec(), adapted.merged
    llm, oracle = engine(spec, **MEASURED, max_num_batched_tokens=64), Oracle(folders)
    llm.collective_rpc("prefmix_start_statistics", args=(1,))
    jobs = random_jobs(10, num_members=3, vocab_size=VOCAB_SIZE, seed=3)
    keys = [f"key {index}" if index % 2 else None for index in range(len(jobs))]
    outputs = generate(llm, jobs, keys)
    sums: dict[str, Any] = {"tokens": 0, "entropy": 0.0, "kl": np.zeros(3)}
    for job, key, output in zip(jobs, keys, outputs, strict=True):
        tokens, _ = served(output.outputs[0])
        expected = truth(oracle, job, tokens)
        sums["tokens"] += len(tokens)
        sums["entropy"] += expected["entropy"].sum()
        if key is None:
            continue
        [taken] = llm.collective_rpc("prefmix_take_request", args=(key,))
        [figures] = [np.array(rows) for rows in taken.values()]
        ran = ~np.isnan(figures[:, 6:9])
        assert (ran == (np.array(job.weights) > 0)).all()
        assert figures[:, 0] == pytest.approx(expected["log_z"], abs=TOLERANCE_NATS)
        assert figures[:, 1] == pytest.approx(expected["entropy"], abs=TOLERANCE_NATS)
        assert figures[:, 2] == pytest.approx(expected["logprob"], abs=TOLERANCE_NATS)
        for columns, name in ((figures[:, 3:6], "kl"), (figures[:, 6:9], "members")):
            assert columns[ran] == pytest.approx(expected[name][ran], abs=TOLERANCE_NATS)
        assert (figures[:, 9:12][ran] == expected["agrees"][ran]).all()
        assert llm.collective_rpc("prefmix_take_request", args=(key,)) == [{}], "taken once"
    [sample] = llm.collective_rpc("prefmix_take_sample")
    assert sample["tokens"] == sums["tokens"]
    assert sample["entropy"] == pytest.approx(sums["entropy"], rel=1e-3)
    assert sum(count for _, count in sample["weights"]) == sums["tokens"]
    assert sample["steps"] > 0
    assert sample["seconds"]["forward"] > sample["seconds"]["mix"] > 0
    [sample] = llm.collective_rpc("prefmix_take_sample")
    assert (sample["tokens"], sample["steps"]) == (0, 0)


def test_a_policy_is_measured_on_the_tokens_it_ran(
    engine: EngineFactory, adapted: AdaptedBase
) -> None:
    """Requests for one policy each share a pass, in which each policy runs its own only."""
    llm, oracle = engine(adapted.spec(), **MEASURED), Oracle(adapted.merged)
    llm.collective_rpc("prefmix_start_statistics", args=(1,))
    jobs = [
        Job(prompt=(4, 5, index + 6), weights=tuple(np.eye(3)[index % 3]), seed=index)
        for index in range(6)
    ]
    keys = [f"key {index}" for index in range(len(jobs))]
    outputs = generate(llm, jobs, list(keys))
    num_tokens = np.zeros(3)
    for job, key, output in zip(jobs, keys, outputs, strict=True):
        tokens, _ = served(output.outputs[0])
        num_tokens += len(tokens) * np.array(job.weights)
        [taken] = llm.collective_rpc("prefmix_take_request", args=(key,))
        [figures] = [np.array(rows) for rows in taken.values()]
        has_weight = np.array(job.weights) > 0
        for first in (3, 6, 9):
            assert (np.isfinite(figures[:, first : first + 3]) == has_weight).all()
        expected = truth(oracle, job, tokens)
        assert figures[:, 2] == pytest.approx(expected["logprob"], abs=TOLERANCE_NATS)
        assert figures[:, 3:6][:, has_weight] == pytest.approx(0.0, abs=TOLERANCE_NATS)
    [sample] = llm.collective_rpc("prefmix_take_sample")
    assert sample["tokens_by_member"] == num_tokens.tolist()
    assert all(
        agreed <= total for agreed, total in zip(sample["agreement"], num_tokens, strict=True)
    )


def test_sampled_kl_is_the_mean_over_tokens(engine: EngineFactory, policies: list[Path]) -> None:
    """Within 1 % of transformers on the same tokens, all members running."""
    llm, oracle = engine(spec_of_folders(policies), **MEASURED), Oracle(policies)
    llm.collective_rpc("prefmix_start_statistics", args=(1,))
    jobs = [
        Job(prompt=(4, 5, index + 6), weights=(0.2, 0.3, 0.5), seed=index) for index in range(8)
    ]
    outputs = generate(llm, jobs, [None] * len(jobs))
    [sample] = llm.collective_rpc("prefmix_take_sample")
    expected = [
        truth(oracle, job, served(output.outputs[0])[0])
        for job, output in zip(jobs, outputs, strict=True)
    ]
    kl = np.concatenate([each["kl"] for each in expected])
    agreement = np.concatenate([each["agrees"] for each in expected])
    assert sample["tokens_by_member"] == [len(kl)] * 3
    assert np.array(sample["kl"]) / len(kl) == pytest.approx(kl.mean(0), rel=0.01)
    assert sample["agreement"] == agreement.sum(0).tolist()
    assert sample["weights"] == [((0.2, 0.3, 0.5), len(kl))]


def test_mixed_parameters_have_no_figures_by_policy(
    engine: EngineFactory, adapted: AdaptedBase
) -> None:
    llm, oracle = engine(adapted.spec(), **MEASURED), Oracle(adapted.merged)
    llm.collective_rpc("prefmix_start_statistics", args=(1,))
    job = Job(prompt=(4, 5, 6), weights=(0.2, 0.3, 0.5), mixing="parameters")
    [output] = generate(llm, [job], ["key"])
    tokens, logprobs = served(output.outputs[0])
    assert oracle.worst_error([job], [output]) < TOLERANCE_NATS
    [taken] = llm.collective_rpc("prefmix_take_request", args=("key",))
    [figures] = [np.array(rows) for rows in taken.values()]
    assert figures[:, 0] == pytest.approx(0.0, abs=TOLERANCE_NATS), "log Z"
    assert figures[:, 2] == pytest.approx(logprobs, abs=TOLERANCE_NATS)
    assert np.isnan(figures[:, 3:]).all()
    [sample] = llm.collective_rpc("prefmix_take_sample")
    assert sample["tokens"] == len(tokens)
    assert sample["tokens_by_member"] == [0, 0, 0]
    assert sample["weights"] == [(job.weights, len(tokens))]


def test_parallel_samples_are_told_apart_and_unasked_requests_cost_nothing(
    engine: EngineFactory, policies: list[Path]
) -> None:
    llm = engine(spec_of_folders(policies), **MEASURED)
    llm.collective_rpc("prefmix_start_statistics", args=(0,))
    jobs = [Job(prompt=(4, 5, 6), weights=(0.2, 0.3, 0.5), max_tokens=5)]
    [output] = generate(llm, jobs, ["key"], n=3)
    [taken] = llm.collective_rpc("prefmix_take_request", args=("key",))
    by_child = {int(req_id.split("_")[0]): np.array(rows) for req_id, rows in taken.items()}
    for index, completion in enumerate(output.outputs):
        assert by_child[index][:, 2] == pytest.approx(served(completion)[1], abs=TOLERANCE_NATS)
    generate(llm, jobs, [None])
    assert model_of(llm).step.statistics._records == {}
    [sample] = llm.collective_rpc("prefmix_take_sample")
    assert sample["tokens"] == 0


def test_sizes_are_those_of_the_checkpoints(
    engine: EngineFactory, policies: list[Path], adapted: AdaptedBase
) -> None:
    from safetensors.torch import load_file

    def size(folder: Path) -> int:
        [file] = folder.glob("*.safetensors")
        return sum(tensor.numel() * 4 for tensor in load_file(file).values())

    [sizes] = engine(spec_of_folders(policies)).collective_rpc("prefmix_sizes")
    *own, shared = sizes["parameters"]
    norms = 5 * 64 * 4
    assert shared == norms, "the gains of all norms are 1"
    for found, folder in zip(own, policies, strict=True):
        assert size(folder) <= found + norms < 1.2 * size(folder)  # vLLM pads the vocabulary
    per_token = 2 * 2 * 64 * 4  # layers, keys and values, width, float32
    assert sizes["kv_per_token"] == [per_token] * 3
    spec = adapted.spec(reference=adapted.reference())
    [sizes] = engine(spec).collective_rpc("prefmix_sizes")
    *adapters, reference, shared = sizes["parameters"]
    assert reference == 0
    assert size(adapted.base) <= shared < 1.2 * size(adapted.base)
    assert min(adapters) >= size(adapted.adapters[0])
    assert sizes["kv_per_token"] == [2 * 2 * 32 * 4] * 4
