"""Statistics on a GPU: what is compiled and timed before there is traffic."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefmix.mixing.batch import statistics
from prefmix.mixing.batch.statistics import MixtureStatisticsCollector
from prefmix.mixing.kernels.tuning import many
from prefmix.mixing.spec import MixtureSpec, Policy

WIDTHS = [3, 5]


class Model:
    """Two policies with heads of their own."""

    spec = MixtureSpec(policies=tuple(Policy(name=name, model=name) for name in "ab"))
    device, dtype, hidden_sizes = torch.device("cpu"), torch.bfloat16, WIDTHS

    def __init__(self, *, gathers: bool = True) -> None:
        self.gathers = gathers

    def member_logits(self, hidden: Any) -> list[torch.Tensor | None]:
        assert [each.shape[1] for each in hidden] == WIDTHS
        assert {each.dtype for each in hidden} == {self.dtype}
        return [torch.zeros(len(each), 7) if self.gathers else None for each in hidden]


@pytest.mark.parametrize("gathers", [True, False])
def test_kernels_are_warm_for_few_rows_and_for_many(
    gathers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that does not gather logits takes part in computing them, and has none to measure."""
    rows = []

    def measured(logits: list[torch.Tensor], weights: torch.Tensor, tokens: torch.Tensor) -> Any:
        assert all(len(each) == len(weights) == len(tokens) for each in logits)
        rows.append(len(weights))
        return SimpleNamespace()

    monkeypatch.setattr(statistics, "mixture_statistics", measured)
    collector = MixtureStatisticsCollector(Model(gathers=gathers), every=0)
    collector.warm_up()
    assert [many(each) for each in rows] == ([False, True] if gathers else [])
    assert collector.take_sample()["tokens"] == 0
