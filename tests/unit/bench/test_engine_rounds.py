"""Measured times become the right figures, on a machine that is slow at times."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from prefmix.bench.command import add_arguments
from prefmix.bench.contestants import settings as names
from prefmix.bench.contestants.job import Job
from prefmix.bench.engine import Rounds, measure_rounds, measurements_of, run, table
from prefmix.server.config.errors import CommandError

START_S = 0.25


class Fake:
    """A contestant with a fixed time to begin and one for each token of the longest request."""

    def __init__(self, token_s: float) -> None:
        self.token_s = token_s
        self.jobs: list[Job] = []
        self.clocks: set[str] = set()

    def seconds(self, job: Job, *, clock: str) -> float:
        self.jobs.append(job)
        self.clocks.add(clock)
        slowness = 10.0 if len(self.jobs) in (5, 6) else 1.0  # the third round
        return slowness * (START_S + (max(job.lengths) - 1) * self.token_s)


def flags(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["engine", *words])


def measured(*words: str, batch: int = 4) -> tuple[dict[str, Fake], list[Any]]:
    args = flags("--rounds", "3", "--tokens", "9", *words)
    fakes = {names.ONE_POLICY: Fake(0.1), names.FULL: Fake(0.3), names.TRUNK: Fake(0.15)}
    workers: Any = fakes
    times = measure_rounds(args, workers, num_policies=3, batch=batch)
    abouts = {name: {"num_threads": 1, "start_s": 2.0} for name in fakes}
    return fakes, measurements_of(args, times, abouts, num_policies=3, batch=batch)


def test_ratios_are_those_of_the_round_and_medians_forget_the_slow_one() -> None:
    _, (floor, full, trunk) = measured()
    whole_s = {name: START_S + 8 * s for name, s in (("one", 0.1), ("full", 0.3), ("trunk", 0.15))}
    assert floor.tokens_per_s.median == pytest.approx(36 / whole_s["one"])
    assert floor.tokens_per_s.low == pytest.approx(3.6 / whole_s["one"])
    assert floor.first_token_ms.median == pytest.approx(250)
    assert floor.token_ms.median == pytest.approx(100)
    assert full.token_ms.median == pytest.approx(300)
    for ratio in (full.of_one_policy.low, full.of_one_policy.high):
        assert ratio == pytest.approx(whole_s["one"] / whole_s["full"])
    assert trunk.of_full.median == pytest.approx(whole_s["full"] / whole_s["trunk"])
    assert floor.of_one_policy.median == 1


def test_contestants_of_a_round_get_the_same_work_and_rounds_differ() -> None:
    fakes, _ = measured()
    jobs = [fake.jobs for fake in fakes.values()]
    assert jobs[0] == jobs[1] == jobs[2]
    assert len(jobs[0]) == 2 * (1 + 3)  # a round is a first token and a whole answer
    prompts = [tuple(map(tuple, job.prompts)) for job in jobs[0]]
    assert len(set(prompts)) == len(prompts)


def test_the_clock_is_asked_of_each_contestant() -> None:
    assert [fake.clocks for fake in measured()[0].values()] == [{"wall"}] * 3
    assert [fake.clocks for fake in measured("--clock", "cpu")[0].values()] == [{"cpu"}] * 3
    with pytest.raises(CommandError, match="--clock cpu leaves out what separate engines compute"):
        run(flags("--clock", "cpu"), [])


def test_lengths_that_vary_count_as_drawn() -> None:
    fakes, (floor, *_) = measured("--vary-lengths")
    whole = fakes[names.ONE_POLICY].jobs[-1]
    assert max(whole.lengths) == 16
    assert floor.token_ms.median == pytest.approx(100)
    seconds = START_S + 15 * 0.1
    assert floor.tokens_per_s.median == pytest.approx(whole.num_tokens / seconds)


def test_the_table_shows_a_fair_price_and_a_dash_without_full_checkpoints() -> None:
    args = flags("--tokens", "9")
    times = {
        names.ONE_POLICY: Rounds(first_s=[1.0], whole_s=[2.0]),
        names.TRUNK: Rounds(first_s=[1.0], whole_s=[4.0]),
    }
    abouts = {name: {"num_threads": 1, "start_s": 2.0} for name in times}
    heading, _, trunk = table(measurements_of(args, times, abouts, num_policies=3, batch=1))
    cells = dict(zip(heading, trunk, strict=True))
    assert cells["contestant"] == "shared trunk"
    assert cells["of one policy"] == "0.500 (0.500-0.500)"
    assert cells["x K"] == "1.500"
    assert cells["of full checkpoints"] == "-"
