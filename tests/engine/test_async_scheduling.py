"""The V2 model runner while its engine schedules a step ahead, as on GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing.engine.scheduler import AsyncMixtureScheduler
from prefmix.mixing.spec import MixtureSpec
from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import RUNNER, EngineFactory, schedule_ahead
from support.exactness import TOLERANCE_NATS, Oracle, generate, random_jobs

pytestmark = pytest.mark.skipif(RUNNER == "v1", reason="a CPU's V1 runner is never a step ahead")


@pytest.fixture
def asynchronous(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule_ahead(monkeypatch)


@pytest.mark.usefixtures("asynchronous")
def test_a_step_ahead_changes_no_distribution(
    own_engine: EngineFactory,
    mixture: tuple[MixtureSpec, list[Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights and members of a step are its own, though the next one is planned already."""
    llm = own_engine(mixture[0], max_num_batched_tokens=64, block_size=32)
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    assert isinstance(scheduler, AsyncMixtureScheduler)
    num_ahead, schedule = 0, scheduler.schedule

    def counted(*args: Any) -> Any:
        nonlocal num_ahead
        num_ahead += any(each.num_output_placeholders for each in scheduler.running)
        return schedule(*args)

    monkeypatch.setattr(scheduler, "schedule", counted)
    jobs = random_jobs(8, num_members=3, vocab_size=VOCAB_SIZE, seed=12)
    assert Oracle(mixture[1]).worst_error(jobs, generate(llm, jobs)) < TOLERANCE_NATS
    assert num_ahead > 10, "no step was planned before the last one's tokens were known"
