"""The hooks at the sampler do the same on both model runners, here of plain objects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prefmix.mixing.engine.sampler_hooks import pass_tokens_to_statistics, report_broken_rows

TOKENS_N1 = torch.tensor([[7], [8]])
IDS = ["a", "b"]


class Statistics:
    """Statistics that record their arguments."""

    def __init__(self) -> None:
        self.kept: object | None = object()
        self.measured: list[tuple[Any, list[str], list[bool]]] = []

    def measure_tokens(self, tokens_N1: Any, req_ids: list[str], is_drawn_N: np.ndarray) -> None:
        self.measured.append((tokens_N1, list(req_ids), is_drawn_N.tolist()))


class SamplerV1(nn.Module):
    def forward(self) -> Any:
        return SimpleNamespace(sampled_token_ids=TOKENS_N1)


class Engine:
    """A runner of two requests, the second of which is still reading its prompt."""

    def __init__(self, *, uses_v2: bool, codes: list[int] | None = None) -> None:
        self.uses_v2 = uses_v2
        broken_rows_N = None if codes is None else torch.tensor(codes)
        self.step = SimpleNamespace(statistics=Statistics(), broken_rows_N=broken_rows_N)
        self.runner: Any = SimpleNamespace(model=SimpleNamespace(step=self.step))
        if uses_v2:
            self.runner.sampler = lambda logits, batch: SimpleNamespace(
                sampled_token_ids=TOKENS_N1, num_nans=None
            )
            return
        self.runner.sampler = SamplerV1()
        self.runner.sample_tokens = lambda: SimpleNamespace(req_ids=IDS, num_nans_in_logits=None)
        self.runner.input_batch = SimpleNamespace(num_reqs=2, req_ids=IDS)
        self.runner.discard_request_mask = SimpleNamespace(np=np.array([False, True, False]))
        self.runner.compilation_config = SimpleNamespace(static_forward_context={})
        self.runner.kv_cache_config = SimpleNamespace(num_blocks=1)

    def sample(self) -> dict[str, int] | None:
        """Draws tokens; returns the codes that go to the scheduler, by request."""
        if not self.uses_v2:
            self.runner.sampler()
            codes: dict[str, int] | None = self.runner.sample_tokens().num_nans_in_logits
            return codes
        batch = SimpleNamespace(
            num_reqs=2,
            req_ids=IDS,
            num_computed_tokens_np=np.array([4, 0]),
            num_scheduled_tokens=np.array([1, 3]),
            prefill_len_np=np.array([5, 9]),
        )
        codes_N = self.runner.sampler(None, batch).num_nans
        return None if codes_N is None else dict(zip(IDS, codes_N.tolist(), strict=True))


@pytest.mark.parametrize("uses_v2", [False, True])
def test_drawn_tokens_reach_the_statistics_of_measured_steps(uses_v2: bool) -> None:
    engine = Engine(uses_v2=uses_v2)
    pass_tokens_to_statistics(engine.runner, uses_v2=uses_v2)
    engine.sample()
    assert engine.step.statistics.measured == [(TOKENS_N1, IDS, [True, False])]
    engine.step.statistics.kept = None
    engine.sample()
    assert len(engine.step.statistics.measured) == 1


@pytest.mark.parametrize("codes", [None, [0, 2]])
@pytest.mark.parametrize("uses_v2", [False, True])
def test_codes_of_broken_rows_leave_with_the_tokens(uses_v2: bool, codes: list[int] | None) -> None:
    engine = Engine(uses_v2=uses_v2, codes=codes)
    engine.step.statistics.kept = None
    report_broken_rows(engine.runner, uses_v2=uses_v2)
    assert engine.sample() == (None if codes is None else dict(zip(IDS, codes, strict=True)))


def test_the_v2_sampler_is_wrapped_once_and_stays_itself() -> None:
    engine = Engine(uses_v2=True, codes=[1, 0])
    engine.runner.sampler.temperature = 0.5
    pass_tokens_to_statistics(engine.runner, uses_v2=True)
    wrapped = engine.runner.sampler
    report_broken_rows(engine.runner, uses_v2=True)
    assert engine.runner.sampler is wrapped
    assert wrapped.temperature == 0.5
    assert engine.sample() == {"a": 1, "b": 0}
    assert len(engine.step.statistics.measured) == 1
