"""Times of one model with K prompts become the right rows."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from prefmix.bench import prompts
from prefmix.bench.command import add_arguments
from prefmix.bench.contestants import settings as names
from prefmix.bench.contestants.job import Job
from prefmix.bench.contestants.models import Models
from prefmix.mixing.spec import MixtureSpec


class Fake:
    """A contestant whose every token takes the same time."""

    def __init__(self, token_s: float) -> None:
        self.token_s = token_s
        self.jobs: list[Job] = []

    def seconds(self, job: Job, *, clock: str) -> float:
        assert clock == "cpu"
        self.jobs.append(job)
        return self.token_s * max(job.lengths)


def measured(*others: str) -> tuple[dict[str, Fake], list[dict[str, Any]]]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["--rounds", "3", "--tokens", "9", "--clock", "cpu", "--policies", "2"]
    args = parser.parse_args(["prompts", *words])
    times = {names.ONE_POLICY: 0.1, names.PROMPTS: 0.125, names.OUTSIDE: 0.5}
    fakes = {name: Fake(times[name]) for name in (names.ONE_POLICY, *others)}
    workers: Any = fakes
    return fakes, prompts._measure(args, workers, head_tokens=30, batch=4)


def test_speeds_are_shares_of_one_policy_that_reads_the_longest_head() -> None:
    fakes, rows = measured(names.PROMPTS, names.OUTSIDE)
    shares = {row["contestant"]: row["of_one_policy"]["median"] for row in rows}
    assert shares == pytest.approx(
        {names.ONE_POLICY: 1.0, names.PROMPTS: 0.8, names.ONE_PROMPT: 0.8, names.OUTSIDE: 0.2}
    )
    assert rows[1]["tokens_per_s"]["median"] == pytest.approx(4 / 0.125)
    assert rows[1]["token_ms"]["median"] == pytest.approx(125)
    cells = dict(zip(*prompts.table(rows)[::4], strict=True))
    assert cells["contestant"] == names.OUTSIDE
    assert cells["of one policy"] == "0.200 (0.200-0.200)"
    assert fakes[names.ONE_POLICY].jobs == fakes[names.OUTSIDE].jobs
    by_row = fakes[names.PROMPTS].jobs
    assert len(by_row) == 2 * 2 * (1 + 3)  # both rows, a first token and a whole answer a round
    assert sum(job.heads is None for job in by_row) == len(by_row) // 2


def test_what_does_not_run_has_no_row() -> None:
    _, rows = measured()
    assert [row["contestant"] for row in rows] == [names.ONE_POLICY]


def test_one_model_is_all_policies_and_its_engine_takes_prompts() -> None:
    models = Models(policies=(), base="m", adapters=(), average=None)
    common = {"options": {"dtype": "float32"}, "kv_cache_bytes": 8}
    found = names.prompt_settings(models, num_policies=3, common=common, top_logprobs=5)
    assert {one["model"] for one in found.values()} == {"m"}
    spec = MixtureSpec.from_dict(found[names.PROMPTS]["mixture"])
    assert spec.has_prompts
    assert [each.model for each in spec.members] == ["m"] * 3
    assert spec.adapters == ()
    assert found[names.OUTSIDE]["kv_cache_bytes"] == 24
    assert found[names.OUTSIDE]["options"]["enable_prefix_caching"]
