"""Requests that mix parameters are served as the weighted mean of the policies' parameters is,
beside requests that mix logits."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing import wire
from prefmix.mixing.ways_to_mix import MIXINGS
from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import (
    INTERPRETED,
    AdaptedBase,
    EngineFactory,
    metric,
    model_of,
    spec_of_folders,
)
from support.exactness import TOLERANCE_NATS, Job, Oracle, both_ways, generate, random_jobs, served

VECTORS = ((1.0, 0.0, 0.0), (0.2, 0.3, 0.5), (0.2, 0.3, 0.5 + 1e-6), (0.0, 0.5, 0.5))


@pytest.fixture(scope="module")
def oracle(adapted: AdaptedBase) -> Oracle:
    return Oracle(adapted.merged)


@pytest.fixture(scope="module")
def llm(engine: EngineFactory, adapted: AdaptedBase) -> Any:
    """The engine of tests/engine/test_exactness.py: chunked prefill and preemption all along."""
    return engine(
        adapted.spec(),
        max_num_batched_tokens=64,
        block_size=32,
        num_gpu_blocks_override=9 if INTERPRETED else 24,
        enable_prefix_caching=True,
    )


def test_a_batch_of_both_ways_is_exact_under_chunking_preemption_and_prefix_hits(
    llm: Any, oracle: Oracle
) -> None:
    """The adapters have unequal ranks, and not all of them change every layer."""
    drawn = random_jobs(40, num_members=3, vocab_size=VOCAB_SIZE, seed=20)
    batch = both_ways(drawn[:8] if INTERPRETED else drawn)
    preemptions = metric(llm, "vllm:num_preemptions")
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    assert metric(llm, "vllm:num_preemptions") > preemptions
    hits = metric(llm, "vllm:prefix_cache_hits")
    longest = sorted(batch, key=lambda job: len(job.prompt))[-3:]
    for _ in range(2):
        assert oracle.worst_error(longest, generate(llm, longest)) < TOLERANCE_NATS
    assert metric(llm, "vllm:prefix_cache_hits") > hits, "no request hit the cache"


def test_blocks_are_shared_by_equal_ways_and_weights_only(llm: Any, oracle: Oracle) -> None:
    """The same prompt one after the other; weights that differ by a millionth have blocks apart."""
    prompt = tuple(range(202, 102, -1))
    for weights in VECTORS:
        for mixing in MIXINGS:
            job = Job(prompt=prompt, weights=weights, mixing=mixing)
            hits = metric(llm, "vllm:prefix_cache_hits")
            assert oracle.worst_error([job], generate(llm, [job])) < TOLERANCE_NATS
            shares = mixing == "logits" and weights == VECTORS[2]  # its members are those before
            assert (metric(llm, "vllm:prefix_cache_hits") - hits >= 64) == shares
    again = Job(prompt=prompt, weights=VECTORS[3], mixing="parameters")
    hits = metric(llm, "vllm:prefix_cache_hits")
    generate(llm, [again])
    assert metric(llm, "vllm:prefix_cache_hits") - hits >= 64


def test_parallel_samples_and_prompt_logprobs_are_exact(llm: Any, oracle: Oracle) -> None:
    job = Job(prompt=tuple(range(9, 69)), weights=(0.1, 0.3, 0.6), mixing="parameters")
    [output] = generate(llm, [job], n=3)
    assert len(output.outputs) == 3
    assert oracle.worst_error([job], [output]) < TOLERANCE_NATS
    [output] = generate(llm, [job], prompt_logprobs=0)
    truth = oracle.logprobs(job.prompt, job.weights, job.mixing)
    for position in range(1, len(job.prompt)):
        token = job.prompt[position]
        expected = truth[position - 1, token].item()
        came = output.prompt_logprobs[position][token].logprob
        assert came == pytest.approx(expected, abs=TOLERANCE_NATS)


def test_top_logprobs_are_the_means(llm: Any, oracle: Oracle) -> None:
    job = Job(prompt=(30, 31, 32), weights=(0.25, 0.5, 0.25), mixing="parameters")
    [output] = generate(llm, [job], logprobs=5)
    tokens, _ = served(output.outputs[0])
    truth = oracle.logprobs((*job.prompt, *tokens), job.weights, job.mixing)
    for step, returned in enumerate(output.outputs[0].logprobs):
        best = truth[len(job.prompt) - 1 + step].topk(5)
        values = sorted((entry.logprob for entry in returned.values()), reverse=True)[:5]
        assert values == pytest.approx(best.values.tolist(), abs=TOLERANCE_NATS)


@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter cannot apply grammars")
def test_a_grammar_bans_tokens_and_keeps_the_odds_of_the_others(llm: Any, oracle: Oracle) -> None:
    """vLLM applies it before it computes log-probabilities, so those of allowed tokens are shifted
    by one number."""
    from vllm.sampling_params import StructuredOutputsParams

    both = both_ways([Job(prompt=(30, 31, 32), weights=(0.25, 0.5, 0.25))] * 2)
    grammar = StructuredOutputsParams(regex="[a-e]{4}")
    outputs = generate(llm, both, logprobs=5, ignore_eos=False, structured_outputs=grammar)
    for job, output in zip(both, outputs, strict=True):
        [answer] = output.outputs
        assert re.fullmatch("[a-e]{4}", answer.text)
        truth = oracle.logprobs((*job.prompt, *answer.token_ids), job.weights, job.mixing)
        for step, returned in enumerate(answer.logprobs):
            own = truth[len(job.prompt) - 1 + step]
            allowed = [(token, each.logprob) for token, each in returned.items()]
            shifts = [value - own[token].item() for token, value in allowed if value > -1e3]
            assert len(shifts) > 1 or step == len(answer.logprobs) - 1
            assert max(shifts) - min(shifts) < 2 * TOLERANCE_NATS


def test_a_request_costs_one_row_a_token_whatever_its_weights(llm: Any) -> None:
    rows: list[int] = []
    hook = model_of(llm).trunk.base.register_forward_hook(
        lambda module, args, kwargs, hidden: rows.append(hidden.shape[0]), with_kwargs=True
    )
    one = Job(prompt=(4, 5, 6), weights=(0.2, 0.3, 0.5), mixing="parameters", max_tokens=4)
    generate(llm, [one, replace(one, weights=(0.0, 0.5, 0.5))])
    assert rows == [6, 2, 2, 2]
    rows.clear()
    generate(llm, [one, replace(one, mixing="logits")])
    assert rows == [12, 4, 4, 4], "one row, and one for each of three policies"
    hook.remove()


def test_a_request_takes_no_more_of_the_cache_than_one_that_mixes_logits(llm: Any) -> None:
    core = llm.llm_engine.engine_core.engine_core
    step = core.step_fn
    most = {}
    for mixing in MIXINGS:
        usages: list[float] = []

        def counted(usages: list[float] = usages) -> Any:
            result = step()
            usages.append(core.scheduler.kv_cache_manager.usage)
            return result

        core.step_fn = counted
        job = Job(prompt=tuple(range(50, 130)), weights=(0.2, 0.3, 0.5), mixing=mixing)
        generate(llm, [job])
        most[mixing] = max(usages)
    core.step_fn = step
    assert most["parameters"] == most["logits"] > 0


def test_one_policy_is_the_same_either_way(llm: Any) -> None:
    one = Job(prompt=(7, 8, 9), weights=(0.0, 1.0, 0.0))
    outputs = generate(llm, [one, replace(one, mixing="parameters")], temperature=0.0)
    (tokens, logprobs), (others, other_logprobs) = (served(each.outputs[0]) for each in outputs)
    assert tokens == others
    assert logprobs == pytest.approx(other_logprobs, abs=TOLERANCE_NATS)


@pytest.mark.parametrize(
    ("layout", "mixing", "message"),
    [
        ("full checkpoints", "parameters", "`prefmix average`"),
        ("shared trunk", "sum", "'sum' is no way to mix; allowed: logits, parameters"),
        ("shared trunk", ["parameters"], "no way to mix"),
    ],
)
def test_what_cannot_be_mixed_is_refused_and_the_engine_lives(
    engine: EngineFactory,
    llm: Any,
    policies: list[Path],
    layout: str,
    mixing: object,
    message: str,
) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    chosen = llm if layout == "shared trunk" else engine(spec_of_folders(policies))
    weights = wire.to_extra_args((0.2, 0.3, 0.5))
    params = SamplingParams(max_tokens=2, extra_args={**weights, wire.MIXING_KEY: mixing})
    with pytest.raises(VLLMValidationError, match=message):
        chosen.generate([{"prompt_token_ids": [5, 6]}], params, use_tqdm=False)
    assert generate(chosen, [Job(prompt=(5, 6), weights=(0.2, 0.3, 0.5))])[0].outputs[0].token_ids
