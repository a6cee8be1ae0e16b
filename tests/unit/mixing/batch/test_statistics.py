"""Statistics on a GPU: what is compiled and timed before there is traffic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prefmix.mixing.batch import statistics
from prefmix.mixing.batch.request_mixing import RequestMixing
from prefmix.mixing.batch.statistics import MixtureStatisticsCollector
from prefmix.mixing.kernels.mixture_statistics import MixtureStatistics
from prefmix.mixing.kernels.one_pass import OnePass
from prefmix.mixing.kernels.tuning import many
from prefmix.mixing.spec import MixtureSpec, Policy

WIDTHS = [3, 5]


class Model:
    """Two policies with heads of their own."""

    spec = MixtureSpec(policies=tuple(Policy(name=name, model=name) for name in "ab"))
    device, dtype, hidden_sizes = torch.device("cpu"), torch.bfloat16, WIDTHS
    max_mixed_rows: int | None = None

    def __init__(self, *, gathers: bool = True) -> None:
        self.gathers = gathers
        self.mixed: list[tuple[bool, bool]] = []
        """By mixing: of many rows, and of a step that is measured."""
        self.one_pass: OnePass | None = None
        self.collector = MixtureStatisticsCollector(self, every=0)

    def mix(self, hidden: Any, weights_NM: torch.Tensor) -> torch.Tensor | None:
        """Mixes hidden states: nobody needs the members' logits for that."""
        self.mixed.append((many(len(weights_NM)), self.collector.kept is not None))
        assert self.collector.wants_all_logits
        if self.one_pass is not None:
            self.collector.keep_logits(self.one_pass)
        return None

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
        return [tokens]

    monkeypatch.setattr(statistics, "mixture_statistics", measured)
    model = Model(gathers=gathers)
    collector = model.collector
    collector.warm_up()
    assert model.mixed == [(False, False), (False, True), (True, False), (True, True)]
    assert [many(each) for each in rows] == ([False, True] if gathers else [])
    assert collector.take_sample()["tokens"] == 0
    assert (collector.kept, collector.wants_logits) == (None, False)


def test_a_single_policy_is_measured_without_mixing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []

    def measured(logits: list[torch.Tensor], weights: torch.Tensor, tokens: torch.Tensor) -> Any:
        rows.append(len(weights))
        return [tokens]

    monkeypatch.setattr(statistics, "mixture_statistics", measured)
    monkeypatch.setattr(Model, "spec", MixtureSpec(policies=(Policy(name="a", model="a"),)))
    monkeypatch.setattr(Model, "mix", None)
    Model().collector.warm_up()
    assert [many(each) for each in rows] == [False, True]


def test_what_the_mixing_measured_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's rows are picked that are measured, with the tokens that were drawn."""
    tokens, warmed = [], []

    def of_tokens(tokens_N: torch.Tensor) -> MixtureStatistics:
        warmed.append(len(tokens_N))
        tokens.append(tokens_N.tolist())
        rows_N = torch.arange(len(tokens_N), dtype=torch.float32)
        rows_NM = rows_N[:, None].expand(-1, 2)
        return MixtureStatistics(rows_N, rows_N, rows_N, rows_NM, rows_NM, rows_NM > 0)

    model = Model()
    model.one_pass = OnePass(torch.zeros(3, 7), None, of_tokens)
    monkeypatch.setattr(Model, "member_logits", None)
    monkeypatch.setattr(statistics, "mixture_statistics", None)
    collector = model.collector
    collector.warm_up()
    assert [many(each) for each in warmed] == [False, True]
    weights_M = (0.5, 0.5)
    requests = [RequestMixing(weights_M=weights_M, measured_as=key) for key in ("a", None, "c")]
    collector.begin_step(requests)
    assert (collector.wants_logits, collector.wants_all_logits) == (True, False)
    collector.kept = ([torch.zeros(3, width) for width in WIDTHS], torch.ones(3, 2), None)
    collector.keep_logits(model.one_pass)
    drawn_N1 = torch.tensor([[4], [5], [6]], dtype=torch.int32)
    collector.measure_tokens(drawn_N1, ["x", "y", "z"], np.ones(3, dtype=bool))
    assert tokens[-1] == [4, 5, 6]
    assert collector.take_request("a") == {"x": [[0.0] * 9]}
    assert collector.take_request("c") == {"z": [[2.0] * 7 + [1.0] * 2]}


@pytest.mark.parametrize(("most", "sizes"), [(None, [5]), (4, [2, 2, 1]), (1, [1] * 5)])
def test_a_measured_step_holds_no_more_logits_than_one_that_is_not(
    most: int | None, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for a GPU's cache is what the logits of the largest step leave, of one policy."""
    held = []

    def measured(logits: list[torch.Tensor], weights: torch.Tensor, tokens: torch.Tensor) -> Any:
        held.append(len(logits[0]))
        rows_NM = weights.new_zeros(len(tokens), 2)
        return MixtureStatistics(*[tokens.float()] * 3, rows_NM, rows_NM, rows_NM > 0)

    monkeypatch.setattr(statistics, "mixture_statistics", measured)
    model = Model()
    model.max_mixed_rows = most
    collector = model.collector
    collector.begin_step([RequestMixing(weights_M=(0.5, 0.5), measured_as="a")] * 5)
    hidden = [torch.zeros(5, width, dtype=torch.bfloat16) for width in WIDTHS]
    collector.kept = (hidden, torch.full((5, 2), 0.5), None)
    drawn_N1 = torch.arange(5, dtype=torch.int32)[:, None]
    collector.measure_tokens(drawn_N1, list("vwxyz"), np.ones(5, dtype=bool))
    assert held == sizes
    figures = collector.take_request("a")
    assert [figures[name][0][1] for name in "vwxyz"] == [0.0, 1.0, 2.0, 3.0, 4.0]
