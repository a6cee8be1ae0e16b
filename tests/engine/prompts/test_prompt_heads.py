"""Each policy reads its own beginning of a prompt: exact, whatever the batch and the cache do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from support.checkpoints.tiny_policies import VOCAB_SIZE, save_policy
from support.engines import AdaptedBase, EngineFactory, metric, spec_of_folders
from support.exactness import TOLERANCE_NATS, Job, Oracle, generate, random_jobs, served
from support.prompts.drawn_conversations import Draw, cache_of, largest_error, send

BLOCK_SIZE = 32
LONGEST_HEAD = 99


@pytest.fixture(scope="module")
def oracle(mixture: tuple[MixtureSpec, list[Path]]) -> Oracle:
    return Oracle(mixture[1])


@pytest.fixture(scope="module")
def llm(engine: EngineFactory, mixture: tuple[MixtureSpec, list[Path]]) -> Any:
    """Small steps and a cache too small for the batch: chunked prefill and preemption all along."""
    return starved(engine, mixture[0])


def starved(engine: EngineFactory, spec: MixtureSpec, *, num_blocks: int = 24) -> Any:
    return engine(
        replace(spec, has_prompts=True),
        max_num_batched_tokens=64,
        block_size=BLOCK_SIZE,
        num_gpu_blocks_override=num_blocks,
        enable_prefix_caching=True,
    )


def with_heads(job: Job, lengths: tuple[int, ...], *, seed: int) -> Job:
    """The same request with a head of these lengths for each policy, and its prompt as the tail.

    A policy without weight, which does not run, has none.
    """
    rng = np.random.default_rng(seed)
    heads = tuple(tuple(map(int, rng.integers(2, VOCAB_SIZE, size=n))) for n in lengths)
    has_weight = [weight != 0 for weight in job.weights]
    own = tuple(head if yes else None for head, yes in zip(heads, has_weight, strict=True))
    longest = max((head for head in own if head is not None), key=len)
    return replace(job, prompt=longest + job.prompt, heads=own)


def prompted_jobs(num_jobs: int, *, num_members: int = 3, seed: int) -> list[Job]:
    """Requests of which three in four have heads: multiples of the block, any lengths, and none."""
    rng = np.random.default_rng(seed)
    drawn = random_jobs(
        num_jobs, num_members=num_members, vocab_size=VOCAB_SIZE, seed=seed, longest=90
    )
    jobs = []
    for index, job in enumerate(drawn):
        lengths = tuple(int(n) for n in rng.integers(0, LONGEST_HEAD + 1, size=num_members))
        if index % 4 == 1:
            lengths = tuple(BLOCK_SIZE * int(n) for n in rng.integers(0, 4, size=num_members))
        jobs.append(job if index % 4 == 3 else with_heads(job, lengths, seed=index % 6))
    return jobs


def test_heads_are_exact_under_chunking_preemption_and_prefix_hits(
    llm: Any, oracle: Oracle
) -> None:
    batch = prompted_jobs(40, seed=0)
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    assert metric(llm, "vllm:num_preemptions") > 0, "the cache was not small enough to preempt"
    hits = metric(llm, "vllm:prefix_cache_hits")
    longest = sorted(batch, key=lambda job: len(job.prompt))[-4:]
    for _ in range(2):
        assert oracle.worst_error(longest, generate(llm, longest)) < TOLERANCE_NATS
    assert metric(llm, "vllm:prefix_cache_hits") > hits, "no request hit the cache"


@pytest.mark.parametrize("lengths", [(61, 0, 17), (64, 32, 0), (5, 37, 69), (0, 0, 1)])
def test_a_growing_conversation_hits_the_cache_and_stays_exact(
    llm: Any, oracle: Oracle, lengths: tuple[int, ...]
) -> None:
    """At most one block a turn is lost against a prompt that all share; none if no policy lags."""
    first = Job(prompt=(3, 4, 5), weights=(0.2, 0.3, 0.5), max_tokens=20)
    job = with_heads(first, lengths, seed=sum(lengths))
    lost = BLOCK_SIZE if any((max(lengths) - n) % BLOCK_SIZE for n in lengths) else 0
    computed = 0
    for turn in range(5):
        hits = metric(llm, "vllm:prefix_cache_hits")
        [output] = generate(llm, [job])
        assert oracle.worst_error([job], [output]) < TOLERANCE_NATS
        found = metric(llm, "vllm:prefix_cache_hits") - hits
        blocks = min(computed, len(job.prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE
        assert found >= max(0, blocks - lost)
        tokens, _ = served(output.outputs[0])
        computed = len(job.prompt) + len(tokens) - 1  # the last token's cache is not written
        job = replace(job, prompt=(*job.prompt, *tokens, 7, 8, turn + 2), seed=turn)


def test_a_turn_hits_at_most_a_block_less_than_in_plain_vllm(llm: Any) -> None:
    """The same lengths without heads keep vLLM's own names of blocks, of which none is late."""
    first = Job(prompt=(8, 4, 5), weights=(0.4, 0.3, 0.3), max_tokens=20)
    prompted = with_heads(first, (70, 3, 41), seed=6)
    conversations = [replace(prompted, prompt=(*prompted.prompt[1:], 6), heads=None), prompted]
    for turn in range(4):
        found = []
        for at, job in enumerate(conversations):
            hits = metric(llm, "vllm:prefix_cache_hits")
            tokens, _ = served(generate(llm, [job])[0].outputs[0])
            found.append(metric(llm, "vllm:prefix_cache_hits") - hits)
            conversations[at] = replace(job, prompt=(*job.prompt, *tokens, 7, turn + 2), seed=turn)
        assert found[1] >= found[0] - BLOCK_SIZE
    assert found[1] > 0


def test_conversations_that_branch_do_not_write_into_each_others_blocks(
    llm: Any, oracle: Oracle
) -> None:
    """They part after a whole block: what a policy that lags has in it is of one branch alone."""
    tail = Job(prompt=tuple(range(2, 57)), weights=(0.3, 0.4, 0.3))
    start = with_heads(tail, (41, 30, 0), seed=4)
    assert len(start.prompt) == 3 * BLOCK_SIZE
    branches = [replace(start, prompt=(*start.prompt, *[n] * 50)) for n in (60, 70)]
    for job in (*branches, *branches):
        assert oracle.worst_error([job], generate(llm, [job])) < TOLERANCE_NATS
    assert oracle.worst_error(branches, generate(llm, branches)) < TOLERANCE_NATS


def test_other_heads_share_no_blocks(llm: Any, oracle: Oracle) -> None:
    tail = Job(prompt=tuple(range(2, 90)), weights=(0.5, 0.25, 0.25))
    for seed in range(3):
        job = with_heads(tail, (40, 8, 40), seed=seed)
        assert oracle.worst_error([job], generate(llm, [job])) < TOLERANCE_NATS


def test_parallel_samples_of_own_prompts_are_exact(llm: Any, oracle: Oracle) -> None:
    job = with_heads(Job(prompt=(9, 8, 7), weights=(0.1, 0.3, 0.6)), (45, 3, 20), seed=1)
    outputs = generate(llm, [job], n=4)
    assert len(outputs[0].outputs) == 4
    assert oracle.worst_error([job], outputs) < TOLERANCE_NATS


def test_a_prompt_may_be_all_head(llm: Any, oracle: Oracle) -> None:
    """No token is common to all: the policies' prompts have nothing but their last place alike."""
    jobs = [
        with_heads(Job(prompt=(), weights=(0.2, 0.3, 0.5)), (n, 50 - n, 12), seed=n)
        for n in (1, 20, 40)
    ]
    assert oracle.worst_error(jobs, generate(llm, jobs)) < TOLERANCE_NATS


@pytest.mark.parametrize("seed", [11])
def test_random_conversations_in_flight_together_are_exact(
    llm: Any, oracle: Oracle, mixture: tuple[MixtureSpec, list[Path]], seed: int
) -> None:
    """Forty at once, some aborted; `make test-traffic` has more, and more kinds of engines."""
    draw = Draw(
        seed,
        num_members=len(mixture[1]),
        vocab_size=VOCAB_SIZE,
        block_size=BLOCK_SIZE,
        has_parameters=mixture[0].base is not None,
    )
    turns = send(llm, draw, num_requests=40, in_flight=40, longest=256, aborted_a_step=0.06)
    assert sum(turn.was_aborted for turn in turns) > 3
    assert largest_error(turns, oracle) < TOLERANCE_NATS, f"of seed {seed}"
    assert cache_of(llm).usage == 0.0, "an ended request has kept cache blocks"


def test_negative_weights_take_a_prompts_influence_away(
    engine: EngineFactory, policies: list[Path]
) -> None:
    """Guidance by a negative prompt: one model three times, weights of up to 3 and below 0."""
    same = [policies[0]] * 3
    named = spec_of_folders(policies, weight_space="affine")
    one = [replace(policy, model=str(policies[0])) for policy in named.policies]
    llm = starved(engine, replace(named, policies=tuple(one)))
    drawn = prompted_jobs(24, seed=3)
    weights = [(1.5, -0.5, 0.0), (3.0, -1.0, -1.0), (0.4, 0.9, -0.3)]
    jobs = [
        with_heads(Job(prompt=job.prompt[-30:], weights=weights[n % 3], seed=n), (n, 40, 7), seed=n)
        for n, job in enumerate(drawn)
    ]
    assert Oracle(same).worst_error(jobs, generate(llm, jobs)) < TOLERANCE_NATS


@pytest.mark.parametrize("which", [(), (1,), (0, 2)])
def test_policies_may_be_the_base_itself(
    engine: EngineFactory, adapted: AdaptedBase, which: tuple[int, ...]
) -> None:
    """No adapter, one between, two around: the others are the base, told apart by their prompts."""
    folders = [adapted.adapters[n] if n in which else adapted.base for n in range(3)]
    truth = [adapted.merged[n] if n in which else adapted.base for n in range(3)]
    named = zip(("a", "b", "c"), folders, strict=True)
    spec = MixtureSpec(
        policies=tuple(Policy(name=name, model=str(folder)) for name, folder in named),
        base=str(adapted.base),
    )
    llm, oracle = starved(engine, spec), Oracle(truth)
    batch = prompted_jobs(24, seed=7)
    for _ in range(2):
        assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    if which:
        drawn = random_jobs(8, num_members=3, vocab_size=VOCAB_SIZE, seed=8)
        averaged = [replace(job, mixing="parameters") for job in drawn]
        assert oracle.worst_error(averaged, generate(llm, averaged)) < TOLERANCE_NATS


def test_windows_reach_back_by_a_members_own_positions(
    engine: EngineFactory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A policy that lags looks further back than the engine: a window's blocks are kept longer."""
    root = tmp_path_factory.mktemp("windows")
    folders = [
        save_policy(root / f"w{n}", seed=n, model_type="mistral", sliding_window=40)
        for n in range(3)
    ]
    llm = starved(engine, spec_of_folders(folders), num_blocks=22)
    oracle = Oracle(folders)
    batch = prompted_jobs(40, seed=5)
    for _ in range(2):
        assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    assert metric(llm, "vllm:num_preemptions") > 0, "the cache was not small enough to preempt"
