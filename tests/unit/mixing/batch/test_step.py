"""The state of a step: the members that run, the rows that are checked and measured."""

from __future__ import annotations

import pytest
import torch

from prefmix.mixing.batch.step import Step


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
