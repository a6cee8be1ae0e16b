"""Windows under random traffic: requests come and go, are cut up, preempted and aborted.

Each case draws its windows, its steps and its traffic from a seed and sends 200 requests through a
cache that is too small for them. Every token of every request is compared with transformers, those
of aborted requests too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefmix.mixing import wire
from prefmix.mixing.spec import MixtureSpec
from support.checkpoints.tiny_adapters import save_adapter, save_merged
from support.checkpoints.tiny_policies import VOCAB_SIZE, save_policy
from support.engines import AdaptedBase, EngineFactory, metric, spec_of_folders
from support.exactness import Job, Oracle, random_jobs

NUM_REQUESTS = 200
TOLERANCE_NATS = 2e-4
GEMMA = {"tie_word_embeddings": True}


@dataclass
class Traffic:
    """The answers, of aborted requests as well."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    """By request, as many as it had when it ended or was aborted."""
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    num_aborted: int = 0


def send(
    llm: Any, jobs: list[Job], rng: np.random.Generator, *, aborted_a_step: float = 0.05
) -> Traffic:
    """Sends requests in bursts and aborts some at random steps."""
    from vllm import SamplingParams

    engine, traffic = llm.llm_engine, Traffic()
    waiting, running = list(enumerate(jobs)), set()
    while waiting or running:
        if waiting and (not running or rng.random() < 0.3):
            for _ in range(min(len(waiting), int(rng.integers(1, 24)))):
                number, job = waiting.pop()
                params = SamplingParams(
                    max_tokens=job.max_tokens,
                    seed=job.seed,
                    logprobs=0,
                    ignore_eos=True,
                    extra_args=wire.to_extra_args(job.weights),
                )
                prompt = {"prompt_token_ids": list(job.prompt)}
                engine.add_request(str(number), prompt, params)
                running.add(number)
        for output in engine.step():
            number, completion = int(output.request_id), output.outputs[0]
            traffic.tokens[number] = list(completion.token_ids)
            traffic.logprobs[number] = [
                step[token].logprob
                for token, step in zip(completion.token_ids, completion.logprobs, strict=True)
            ]
            if output.finished:
                running.discard(number)
        if running and rng.random() < aborted_a_step:
            victim = int(rng.choice(sorted(running)))
            engine.abort_request([str(victim)])
            running.discard(victim)
            traffic.num_aborted += 1
    return traffic


def errors_of(traffic: Traffic, jobs: list[Job], oracle: Oracle) -> list[float]:
    """The largest error of each request that has tokens, in nats."""
    return [
        float(np.abs(oracle.errors(jobs[number], tokens, traffic.logprobs[number])).max())
        for number, tokens in traffic.tokens.items()
        if tokens
    ]


def full(root: Path, *settings: dict[str, Any]) -> tuple[MixtureSpec, list[Path]]:
    """Full checkpoints, each of its own settings."""
    folders = [
        save_policy(root / f"p{seed}", seed=seed, **each) for seed, each in enumerate(settings)
    ]
    return spec_of_folders(folders), folders


def trunk(root: Path, settings: dict[str, Any]) -> tuple[MixtureSpec, list[Path]]:
    """A trunk with two adapters, and what they merge to."""
    base = save_policy(root / "base", seed=0, **settings)
    # Large factors would make a model in which float32 itself errs by more than the tolerance.
    adapters = [save_adapter(root / f"a{seed}", base, seed=seed, size=0.1) for seed in (1, 2)]
    merged = [save_merged(root / f"m{index}", base, each) for index, each in enumerate(adapters)]
    return AdaptedBase(base=base, adapters=adapters, merged=merged).spec(), merged


def mixture_of(case: str, root: Path, rng: np.random.Generator) -> tuple[MixtureSpec, list[Path]]:
    """The mixture of a case, with windows from the generator."""

    def window() -> int:
        return int(rng.integers(9, 70))

    def some(model_type: str, **settings: Any) -> dict[str, Any]:
        return {"model_type": model_type, "sliding_window": window(), **settings}

    if case == "mistral":
        return full(root, some("mistral"), some("mistral"))
    if case == "mistral trunk":
        return trunk(root, some("mistral"))
    if case == "gemma2":
        return full(root, some("gemma2", **GEMMA), some("gemma2", **GEMMA))
    if case == "gemma2 trunk":
        return trunk(root, some("gemma2", **GEMMA))
    types = {"layer_types": ["sliding_attention", "full_attention"]}
    if case == "gemma3":
        return full(root, some("gemma3_text", **GEMMA, **types), some("gemma3_text", **GEMMA))
    if case == "gemma3 trunk":
        return trunk(root, some("gemma3_text", **GEMMA, **types))
    assert case == "mixed groups"
    return full(root, some("mistral"), {}, some("gemma3_text", layers=3, **GEMMA))


@pytest.mark.parametrize(
    ("seed", "case"),
    enumerate(
        (
            "mistral",
            "mistral trunk",
            "gemma2",
            "gemma2 trunk",
            "gemma3",
            "gemma3 trunk",
            "mixed groups",
        )
    ),
)
def test_windows_are_exact_under_random_traffic(
    own_engine: EngineFactory, tmp_path: Path, seed: int, case: str
) -> None:
    rng = np.random.default_rng(seed)
    spec, folders = mixture_of(case, tmp_path, rng)
    llm = own_engine(
        spec,
        max_num_batched_tokens=int(rng.integers(40, 130)),
        max_num_seqs=int(rng.integers(8, 24)),
        block_size=32,
        num_gpu_blocks_override=18 * len(folders),
        enable_prefix_caching=True,
    )
    jobs = random_jobs(NUM_REQUESTS, num_members=len(folders), vocab_size=VOCAB_SIZE, seed=seed)
    traffic = send(llm, jobs, rng)
    oracle = Oracle(folders)
    errors = errors_of(traffic, jobs, oracle)
    assert max(errors) < TOLERANCE_NATS
    assert len(errors) > 0.7 * NUM_REQUESTS, "others were aborted before their first token"
    assert traffic.num_aborted > 5
    assert metric(llm, "vllm:num_preemptions") > 0
    longest = sorted(jobs, key=lambda job: len(job.prompt))[-3:]
    for job in longest:
        for _ in range(2):  # in the small cache nothing else survives
            alone = send(llm, [job], rng, aborted_a_step=0.0)
            assert max(errors_of(alone, [job], oracle)) < TOLERANCE_NATS
    assert metric(llm, "vllm:prefix_cache_hits") > 0
