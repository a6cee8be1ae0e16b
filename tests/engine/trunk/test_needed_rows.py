"""Steps of a shared trunk on a GPU run the policies that their requests weigh, and replay graphs of
fewer tokens than they have.

On vLLM's V2 model runner: on a CPU by tests/processes/test_runner_v2.py, with recordings for graphs
(tests/support/no_device/recorded_graphs.py), and on a GPU by tests/gpu/test_exactness_gpu.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prefmix.mixing.engine.scheduler import AsyncMixtureScheduler
from prefmix.mixing.slots import commands
from prefmix.mixing.spec import MixtureSpec, Policy
from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import (
    INTERPRETED,
    RUNNER,
    AdaptedBase,
    EngineFactory,
    model_of,
    schedule_ahead,
)
from support.exactness import (
    TOLERANCE_NATS,
    Job,
    Oracle,
    both_ways,
    generate,
    random_jobs,
    rounding_errors,
    with_drawn_heads,
)

pytestmark = pytest.mark.skipif(RUNNER == "v1", reason="GPUs have V2")

FULL_SIZES = (1, 2, 4, 8, 12, 16)
SIZES = (*FULL_SIZES, 32, 48)
"""Steps with prompts have graphs of pieces beyond the most requests."""
NUM_MEMBERS = 4


@pytest.fixture(scope="module")
def rows_of_gpus() -> Iterator[None]:
    """A GPU's rows, and steps that are planned before the last one's tokens are known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefmix.mixing.models.base.takes_any_rows", lambda device: False)
        schedule_ahead(patch)
        yield


def started(
    engine: EngineFactory, adapted: AdaptedBase, *, has_prompts: bool = False, **options: Any
) -> Any:
    """Small steps, and a cache too small for the batch: chunks and preemption all along."""
    graphs: dict[str, Any] = {}
    if not INTERPRETED:
        graphs = {"enforce_eager": False, "cudagraph_capture_sizes": list(SIZES)}
    llm = engine(
        replace(adapted.spec(reference=adapted.reference()), has_prompts=has_prompts),
        max_num_batched_tokens=48,
        max_num_seqs=16,
        num_gpu_blocks_override=24,
        enable_prefix_caching=True,
        **graphs,
        **options,
    )
    assert isinstance(llm.llm_engine.engine_core.engine_core.scheduler, AsyncMixtureScheduler)
    return llm


@pytest.fixture(scope="module")
def llm(rows_of_gpus: None, engine: EngineFactory, adapted: AdaptedBase) -> Any:
    return started(engine, adapted)


@pytest.fixture(scope="module")
def oracle(adapted: AdaptedBase) -> Oracle:
    return Oracle([*adapted.merged, adapted.base])


@contextmanager
def rows_of_passes(llm: Any) -> Iterator[list[int]]:
    """The number of rows of each pass whose Python runs."""
    rows: list[int] = []
    hook = model_of(llm).trunk.base.register_forward_pre_hook(
        lambda _, inputs: rows.append(len(inputs[0]))
    )
    yield rows
    hook.remove()


in_eager_passes = pytest.mark.skipif(not INTERPRETED, reason="a compiled pass runs no Python")


@in_eager_passes
def test_a_pass_has_the_rows_that_requests_weigh(llm: Any, oracle: Oracle) -> None:
    """Chunks, decode steps and both in one pass, without a graph."""
    weights = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.5, 0.0, 0.5), (0.0, 0.0, 1.3, -0.3))
    batch = [
        Job(prompt=tuple(range(3, 3 + length)), weights=each, max_tokens=4)
        for each, length in zip(weights[:2], (40, 8), strict=True)
    ]
    with rows_of_passes(llm) as rows:
        assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    # 40 tokens of one policy and 8 of two, then a token each.
    assert rows == [40 + 2 * 8] + [3] * 3


@in_eager_passes
def test_steps_with_prompts_have_the_rows_of_the_smallest_graph(llm: Any, oracle: Oracle) -> None:
    """40 tokens of one policy and 8 of two: 56 rows, which are 16 tokens of all four."""
    from support.no_device.recorded_graphs import replays

    batch = [
        Job(prompt=tuple(range(9, 49)), weights=(0.0, 1.0, 0.0, 0.0), max_tokens=4),
        Job(prompt=tuple(range(60, 68)), weights=(0.5, 0.0, 0.5, 0.0), max_tokens=4),
    ]
    with replays(llm, SIZES) as found, rows_of_passes(llm) as rows:
        rows.clear()  # of what has been captured
        assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    assert rows == [NUM_MEMBERS * 16]
    assert found == {1: 3}, "three rows of four"


@in_eager_passes
def test_mixed_sets_are_exact_without_graphs(llm: Any, oracle: Oracle) -> None:
    batch = both_ways(random_jobs(24, num_members=NUM_MEMBERS, vocab_size=VOCAB_SIZE, seed=20))
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_mixed_sets_are_exact_in_graphs_of_fewer_tokens(llm: Any, oracle: Oracle) -> None:
    from support.no_device.recorded_graphs import replays

    batch = both_ways(random_jobs(24, num_members=NUM_MEMBERS, vocab_size=VOCAB_SIZE, seed=21))
    with replays(llm, SIZES) as found:
        assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    assert sum(found.values()) > 20
    assert set(found) <= set(FULL_SIZES)


def test_own_prompts_are_exact_in_graphs_of_fewer_tokens(
    rows_of_gpus: None, engine: EngineFactory, adapted: AdaptedBase, oracle: Oracle
) -> None:
    """Each policy that a request weighs has its own tokens, positions and blocks."""
    from support.no_device.recorded_graphs import replays

    batch = random_jobs(16, num_members=NUM_MEMBERS, vocab_size=VOCAB_SIZE, seed=23, longest=90)
    batch = [
        with_drawn_heads(job, vocab_size=VOCAB_SIZE, seed=index) if index % 4 else job
        for index, job in enumerate(batch)
    ]
    llm = started(engine, adapted, has_prompts=True)
    with replays(llm, SIZES) as found:
        assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    assert sum(found.values()) > 20
    assert min(found) < 4


def test_bfloat16_errs_no_more_than_transformers_in_bfloat16(
    rows_of_gpus: None, engine: EngineFactory, adapted: AdaptedBase
) -> None:
    from support.no_device.recorded_graphs import replays

    batch = random_jobs(16, num_members=NUM_MEMBERS, vocab_size=VOCAB_SIZE, seed=24)
    llm = started(engine, adapted, dtype="bfloat16")
    with replays(llm, SIZES):
        outputs = generate(llm, batch)
    folders = [*adapted.merged, adapted.base]
    engine_rms, own_rms = rounding_errors(folders, batch, outputs, dtype=torch.bfloat16)
    assert 0 < engine_rms < 1.5 * own_rms


def test_slots_are_exact_in_graphs_of_fewer_tokens(
    rows_of_gpus: None, engine: EngineFactory, adapted: AdaptedBase
) -> None:
    """Slots with a KV cache are members with rows of their own, and one without is a part of mixed
    parameters only; their content changes between the steps."""
    from support.no_device.recorded_graphs import replays

    own, plain = (
        Policy(name=name, model=str(model))
        for name, model in (("own", adapted.adapters[0]), ("plain", adapted.base))
    )
    llm = engine(
        MixtureSpec(
            policies=(own, plain),
            base=str(adapted.base),
            adapter_slots=3,
            slots_without_kv=1,
            max_adapter_rank=8,
        ),
        max_num_batched_tokens=48,
        max_num_seqs=16,
        block_size=32,
    )
    jobs = both_ways(random_jobs(12, num_members=5, vocab_size=VOCAB_SIZE, seed=24, longest=60))
    batch = [
        replace(job, max_tokens=min(job.max_tokens, 10), weights=_with_kv(job)) for job in jobs
    ]
    with replays(llm, SIZES) as found:
        for second in (1, 2):
            held = [adapted.merged[0], adapted.base, *(adapted.merged[n] for n in (1, second, 2))]
            for slot, adapter in enumerate((1, second, 2)):
                _put(llm, slot, adapted.adapters[adapter])
            assert Oracle(held).worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    assert min(found) < 4


def _with_kv(job: Job) -> tuple[float, ...]:
    """Weights with which the last slot, which has no KV cache, takes part in parameters only."""
    *weights, last = job.weights
    if job.mixing == "parameters":
        return job.weights
    return (weights[0] + last, *weights[1:], 0.0)


def _put(llm: Any, slot: int, folder: Path) -> None:
    """Puts an adapter into a slot."""
    core = llm.llm_engine.engine_core.engine_core
    commands.run(core, "read", ["newcomer", str(folder)])
    while not (outcome := commands.run(core, "outcome", []))["done"]:
        time.sleep(0.01)
    assert outcome["failure"] is None
    assert commands.run(core, "put", [slot, folder.name])["failure"] is None


@pytest.mark.parametrize(
    ("weights", "size"),
    [
        ((1.0, 0.0, 0.0, 0.0), 2),  # 8 rows of 4 policies
        ((0.0, 0.0, 1.0, 0.0), 2),
        ((0.5, 0.0, 0.0, 0.5), 4),
        ((0.2, 0.3, 0.5, 0.0), 8),  # 24 rows are 6 tokens of all, of which there is no graph
        ((0.1, 0.2, 0.3, 0.4), 8),
    ],
)
def test_a_step_replays_the_smallest_graph_that_has_its_rows(
    llm: Any, oracle: Oracle, weights: tuple[float, ...], size: int
) -> None:
    from support.no_device.recorded_graphs import replays

    batch = [
        Job(prompt=(5, seed + 2), weights=weights, max_tokens=6, seed=seed) for seed in range(8)
    ]
    with replays(llm, SIZES) as found:
        assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    assert found == {size: 5}


def test_blocks_that_a_policy_left_out_are_not_found_by_those_who_weigh_it(
    llm: Any, oracle: Oracle
) -> None:
    """A conversation goes on with other weights, as after a decode step without the policy."""
    from support.no_device.recorded_graphs import replays

    prompt = tuple(range(7, 47))
    with replays(llm, SIZES):
        for weights in ((1.0, 0.0, 0.0, 0.0), (0.4, 0.0, 0.6, 0.0), (0.25,) * 4) * 2:
            job = Job(prompt=prompt, weights=weights, max_tokens=40)
            [output] = generate(llm, [job])
            assert oracle.worst_error([job], [output]) < TOLERANCE_NATS
            if len(prompt) < 150:
                prompt = (*prompt, *output.outputs[0].token_ids)


@pytest.mark.parametrize("shifted", ["places", "slots", "scales"])
def test_a_row_in_the_wrong_place_is_found(
    llm: Any, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, shifted: str
) -> None:
    """The tests above can fail."""
    from support.no_device.recorded_graphs import replays

    needed = model_of(llm).weights.needed
    begin = type(needed).begin

    def shifting(self: Any, *args: Any, **kwargs: Any) -> Any:
        listed = begin(self, *args, **kwargs)
        rows = self.num_rows
        if shifted == "places":
            self._plan = self._plan._replace(members_R=self._plan.members_R.roll(1))
        elif shifted == "slots":
            self._slots[:, :rows] = self._slots[:, :rows].roll(1, dims=1)
        else:
            scales_RK = model_of(llm).stack._scales_RK
            scales_RK[:rows] = scales_RK[:rows].roll(1, dims=0)
        return listed

    batch = random_jobs(8, num_members=NUM_MEMBERS, vocab_size=VOCAB_SIZE, seed=22)
    batch = [replace(job, max_tokens=6) for job in batch]
    monkeypatch.setattr(type(needed), "begin", shifting)
    with replays(llm, SIZES):
        worst = oracle.worst_error(batch, generate(llm, batch))
    llm.reset_prefix_cache()
    assert worst > 10 * TOLERANCE_NATS
