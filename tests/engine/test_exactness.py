"""The served distribution is the mixture: every row, whatever the batch around it does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing import wire
from prefmix.mixing.spec import MixtureSpec
from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import INTERPRETED, EngineFactory, metric
from support.exactness import TOLERANCE_NATS, Job, Oracle, generate, random_jobs, served

PREEMPTED = 0
"""The seed of the jobs that the cache is too small for."""


@pytest.fixture(scope="module")
def oracle(mixture: tuple[MixtureSpec, list[Path]]) -> Oracle:
    return Oracle(mixture[1])


@pytest.fixture(scope="module")
def llm(engine: EngineFactory, mixture: tuple[MixtureSpec, list[Path]]) -> Any:
    """Small steps and a cache too small for the batch: chunked prefill and preemption all along."""
    return engine(
        mixture[0],
        max_num_batched_tokens=64,
        block_size=32,
        num_gpu_blocks_override=9 if INTERPRETED else 24,
        enable_prefix_caching=True,
    )


def jobs(num_jobs: int, *, seed: int) -> list[Job]:
    """Long enough to be preempted; shorter where each step is interpreted."""
    drawn = random_jobs(num_jobs, num_members=3, vocab_size=VOCAB_SIZE, seed=seed)
    if not INTERPRETED or seed == PREEMPTED:
        return drawn
    return [replace(job, max_tokens=min(job.max_tokens, 10)) for job in drawn]


def test_mixed_batch_is_exact_under_chunking_preemption_and_prefix_hits(
    llm: Any, oracle: Oracle
) -> None:
    batch = jobs(9 if INTERPRETED else 40, seed=PREEMPTED)
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    assert metric(llm, "vllm:num_preemptions") > 0, "the cache was not small enough to preempt"
    hits = metric(llm, "vllm:prefix_cache_hits")
    longest = sorted(batch, key=lambda job: len(job.prompt))[-3:]
    for _ in range(2):
        assert oracle.worst_error(longest, generate(llm, longest)) < TOLERANCE_NATS
    assert metric(llm, "vllm:prefix_cache_hits") > hits, "no request hit the cache"


def test_prefix_of_a_skipped_policy_is_never_reused(llm: Any, oracle: Oracle) -> None:
    """The first request runs only the first policy; the second needs the other's KV blocks."""
    prompt = tuple(range(2, 102))
    for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.5, 0.5, 0.0), (1 / 3, 1 / 3, 1 / 3)):
        job = Job(prompt=prompt, weights=weights)
        assert oracle.worst_error([job], generate(llm, [job])) < TOLERANCE_NATS


def test_same_set_of_policies_shares_prefixes(llm: Any) -> None:
    prompt = tuple(range(103, 203))
    generate(llm, [Job(prompt=prompt, weights=(0.9, 0.1, 0.0))])
    hits = metric(llm, "vllm:prefix_cache_hits")
    generate(llm, [Job(prompt=prompt, weights=(0.2, 0.8, 0.0))])
    assert metric(llm, "vllm:prefix_cache_hits") - hits >= 64


def test_missing_weights_mean_uniform(llm: Any, oracle: Oracle) -> None:
    from vllm import SamplingParams

    uniform = Job(prompt=(5, 6, 7), weights=(1 / 3, 1 / 3, 1 / 3))
    params = SamplingParams(max_tokens=10, logprobs=0, seed=3, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": [5, 6, 7]}], params, use_tqdm=False)
    assert oracle.worst_error([uniform], outputs) < TOLERANCE_NATS


def test_parallel_samples_are_exact(llm: Any, oracle: Oracle) -> None:
    job = Job(prompt=(9, 8, 7, 6), weights=(0.1, 0.3, 0.6))
    outputs = generate(llm, [job], n=4)
    assert len(outputs[0].outputs) == 4
    assert oracle.worst_error([job], outputs) < TOLERANCE_NATS


def test_prompt_logprobs_are_exact(llm: Any, oracle: Oracle) -> None:
    batch = [Job(prompt=job.prompt[:60], weights=job.weights) for job in jobs(8, seed=1)]
    for job, output in zip(batch, generate(llm, batch, prompt_logprobs=0), strict=True):
        truth = oracle.logprobs(job.prompt, job.weights)
        for position, step in enumerate(output.prompt_logprobs):
            if position:
                token = job.prompt[position]
                expected = truth[position - 1, token].item()
                assert step[token].logprob == pytest.approx(expected, abs=TOLERANCE_NATS)


def test_top_logprobs_are_the_mixtures(llm: Any, oracle: Oracle) -> None:
    job = Job(prompt=(30, 31, 32), weights=(0.25, 0.5, 0.25))
    [output] = generate(llm, [job], logprobs=5)
    tokens, _ = served(output.outputs[0])
    truth = oracle.logprobs((*job.prompt, *tokens), job.weights)
    for step, returned in enumerate(output.outputs[0].logprobs):
        best = truth[len(job.prompt) - 1 + step].topk(5)
        values = sorted((entry.logprob for entry in returned.values()), reverse=True)[:5]
        assert values == pytest.approx(best.values.tolist(), abs=TOLERANCE_NATS)


def test_greedy_follows_the_mixture(llm: Any, oracle: Oracle) -> None:
    batch = jobs(6, seed=2)
    for job, output in zip(batch, generate(llm, batch, temperature=0.0), strict=True):
        tokens, _ = served(output.outputs[0])
        truth = oracle.logprobs((*job.prompt, *tokens), job.weights)[len(job.prompt) - 1 :]
        for step, token in enumerate(tokens):
            assert truth[step, token] >= truth[step].max() - TOLERANCE_NATS


def test_neighbours_do_not_matter(llm: Any) -> None:
    batch = jobs(6, seed=4)
    together = [served(output.outputs[0])[1] for output in generate(llm, batch)]
    alone = [served(generate(llm, [job])[0].outputs[0])[1] for job in batch]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=TOLERANCE_NATS)


def test_stop_strings_end_the_text(llm: Any) -> None:
    from vllm import SamplingParams

    max_tokens = 20 if INTERPRETED else 60
    extra_args = wire.to_extra_args([0.5, 0.5, 0])
    params = SamplingParams(max_tokens=max_tokens, temperature=0, extra_args=extra_args)
    [full] = llm.generate(["the quick"], params, use_tqdm=False)
    text = full.outputs[0].text
    stop = text[3:6]
    params.stop = [stop]
    [stopped] = llm.generate(["the quick"], params, use_tqdm=False)
    assert stopped.outputs[0].text == text[: text.index(stop)]
    assert stopped.outputs[0].stop_reason == stop


def test_a_seed_means_the_same_text_however_the_prompt_is_chunked(llm: Any) -> None:
    """A long seeded prompt beside others is cut into chunks; alone it is cut differently."""
    long_job = Job(prompt=tuple(range(2, 152)), weights=(0.2, 0.3, 0.5), max_tokens=10, seed=7)
    alone = served(generate(llm, [long_job])[0].outputs[0])[0]
    crowded = generate(llm, [*jobs(5, seed=5), long_job])[-1]
    assert served(crowded.outputs[0])[0] == alone
