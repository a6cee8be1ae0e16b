"""Outside combinations of truncated lists are mixtures; shared memory is counted once."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from prefmix.bench.contestants.implementations import Contestant, PromptsOutside, draw_mixed
from prefmix.bench.contestants.job import Job, make_job
from prefmix.bench.memory import unique_bytes


def test_complete_lists_are_drawn_from_the_log_linear_mixture() -> None:
    policies_KV = [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]
    weights_K = [0.25, 0.75]
    mixture = [
        math.prod(policy[v] ** w for policy, w in zip(policies_KV, weights_K, strict=True))
        for v in range(3)
    ]
    lists_K = [{v: math.log(p) for v, p in enumerate(policy)} for policy in policies_KV]
    rng, num = random.Random(0), 20_000
    counts = Counter(draw_mixed(lists_K, weights_K, rng) for _ in range(num))
    for v in range(3):
        assert counts[v] / num == pytest.approx(mixture[v] / sum(mixture), abs=0.015)


def test_a_token_that_one_list_lacks_counts_as_its_least_likely_one() -> None:
    lists_K = [{0: math.log(0.6), 1: math.log(0.3)}, {0: math.log(0.5), 2: math.log(0.25)}]
    rng, num = random.Random(0), 20_000
    counts = Counter(draw_mixed(lists_K, [0.5, 0.5], rng) for _ in range(num))
    scores = [math.sqrt(0.6 * 0.5), math.sqrt(0.3 * 0.25), math.sqrt(0.3 * 0.25)]
    for v in range(3):
        assert counts[v] / num == pytest.approx(scores[v] / sum(scores), abs=0.015)


def test_work_that_is_incomplete_is_not_timed() -> None:
    class Lazy(Contestant):
        def draw(self, job: Job) -> list[list[int]]:
            return [[5] * 3, [5] * 2]

    job = make_job(batch=2, num_policies=1, prompt_tokens=2, tokens=3, seed=0)
    with pytest.raises(AssertionError, match=r"drew \[3, 2\] tokens, not \[3, 3\]"):
        Lazy().answer({"job": job.to_dict()})


def test_shared_memory_is_counted_once() -> None:
    table = torch.zeros(10, 4)
    other = torch.zeros(3, dtype=torch.bfloat16)
    assert unique_bytes([table, table.T, table[2:5], other]) == 160 + 6


def test_requests_outside_read_each_prompt_with_all_that_was_drawn() -> None:
    asked: list[list[list[int]]] = []

    class Listing:
        """Each head's first token names the token that its policy thinks likeliest."""

        def answer(self, request: dict[str, list[list[int]]]) -> dict[str, object]:
            asked.append(request["contexts"])
            listed = [[(text[0], 0.0), (99, -1e4)] for text in request["contexts"]]
            return {"logprobs": listed}

    contestant = PromptsOutside.__new__(PromptsOutside)
    contestant._engine, contestant._random = Listing(), random.Random(0)  # type: ignore[assignment]
    job = Job(
        prompts=[[1, 2], [3]],
        lengths=[2, 1],
        weights=[[1.0, 0.0], [0.0, 1.0]],
        heads=[[[50], [60, 61]], [[70], [80, 81]]],
    )
    assert contestant.draw(job) == [[50, 50], [80]]
    assert asked == [
        [[50, 1, 2], [60, 61, 1, 2], [70, 3], [80, 81, 3]],
        [[50, 1, 2, 50], [60, 61, 1, 2, 50]],
    ]
