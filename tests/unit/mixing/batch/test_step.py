"""The state of a step: the members that run, the rows that are checked and measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefmix.mixing.batch.request_mixing import RequestMixing
from prefmix.mixing.batch.statistics import MixtureStatisticsCollector
from prefmix.mixing.batch.step import Step
from prefmix.mixing.spec import MixtureSpec, Policy


@pytest.mark.parametrize("can_skip", [True, False])
def test_members_without_weight_are_skipped_only_where_that_is_allowed(can_skip: bool) -> None:
    step = Step(num_members=3, can_skip=can_skip)
    assert step.everyone_runs, "before any batch"
    step.begin([True, False, True], [])
    assert step.members == ([0, 2] if can_skip else [0, 1, 2])
    step.begin_without_batch()
    assert step.members == [0, 1, 2]


def test_members_without_weight_run_where_the_pass_of_all_is_the_one_that_is_compiled() -> None:
    step = Step(num_members=3, can_skip=True)
    step.runs_everyone = True
    step.begin([True, False, False], [])
    assert step.members == [0, 1, 2]


def test_only_the_first_logits_of_a_step_are_checked() -> None:
    """Later logits are for prompt logprobs: their codes would end up at the wrong requests."""
    step = Step(num_members=1, can_skip=True)
    broken_NV, weights_NM = torch.full((1, 4), torch.nan), torch.ones(1, 1)
    step.begin([True], [])
    step.check_rows(broken_NV.clone(), [torch.ones(1, 2)], weights_NM)
    assert step.broken_rows_N is None, "nobody would end the request"
    step.checks_rows = True
    for first, codes in ((broken_NV, [2]), (torch.ones(1, 4), None)):
        step.begin([True], [])
        step.check_rows(first.clone(), [torch.ones(1, 2)], weights_NM)
        step.check_rows(broken_NV.clone(), [torch.ones(1, 2)], weights_NM)
        found = step.broken_rows_N
        assert (None if found is None else found.tolist()) == codes


def measured_step(*, every: int) -> tuple[Any, list[RequestMixing]]:
    """A step whose statistics are on, and its requests."""
    spec = MixtureSpec(policies=(Policy(name="a", model="a"),))
    model: Any = SimpleNamespace(spec=spec, device=torch.device("cpu"))
    step = Step(num_members=1, can_skip=True)
    step.statistics = MixtureStatisticsCollector(model, every=every)
    return step, [RequestMixing(weights_M=(1.0,), measured_as="key")]


def test_the_rows_of_prompt_log_probabilities_are_not_measured() -> None:
    """They follow those that the step draws tokens from; each would take all members' logits."""
    step, requests = measured_step(every=0)
    hidden, weights_NM = [torch.ones(1, 2)], torch.ones(1, 1)
    step.begin([True], requests)
    assert not step.wants_all_logits, "nothing is mixed yet"
    step.keep_hidden(hidden, weights_NM)
    assert step.wants_all_logits
    step.check_rows(torch.ones(1, 4), hidden, weights_NM)
    step.statistics.measure_tokens(torch.ones(2, 1), ["other"], None)  # takes what was kept
    step.keep_hidden([torch.ones(9, 2)], torch.ones(9, 1))
    assert step.statistics.kept is None
    assert not step.wants_all_logits


@pytest.mark.parametrize("runs_python", [True, False])
def test_a_pass_is_timed_once_also_where_a_graph_replays_it(runs_python: bool) -> None:
    step, requests = measured_step(every=2)
    for _ in range(4):
        step.begin([True], requests)
        if runs_python:
            with step.timed("forward"):
                pass
        for _ in range(2):
            step.keep_hidden([torch.ones(1, 2)], torch.ones(1, 1))
            with step.timed("mix"):
                step.check_rows(torch.ones(1, 4), [torch.ones(1, 2)], torch.ones(1, 1))
    parts = [part for part, *_ in step.statistics._clocks]
    assert parts == ["forward", "mix", "mix"] * 2
    assert step.statistics.take_sample()["seconds"]["forward"] > 0
