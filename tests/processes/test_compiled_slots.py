"""Slots in compiled graphs: what comes into them counts from the next pass on."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prefmix.mixing.engine import self_check
from prefmix.mixing.slots import commands
from prefmix.mixing.spec import MixtureSpec, Policy
from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import AdaptedBase, EngineFactory, model_of
from support.exactness import TOLERANCE_NATS, Oracle, generate, random_jobs

pytestmark = pytest.mark.engine


def put(llm: Any, slot: int, folder: Path) -> None:
    core = llm.llm_engine.engine_core.engine_core
    commands.run(core, "read", [folder.name, str(folder)])
    deadline = time.monotonic() + 60
    while not commands.run(core, "outcome", [])["done"]:
        assert time.monotonic() < deadline, "the adapter is never read"
        time.sleep(0.01)
    found = commands.run(core, "put", [slot, folder.name])
    assert found["failure"] is None


def test_a_base_whose_slots_have_no_cache_runs_as_one_model(
    engine: EngineFactory, adapted: AdaptedBase
) -> None:
    """No member but the base has rows, and every request has one row a token."""
    plain = Policy(name="plain", model=str(adapted.base))
    spec = MixtureSpec(
        policies=(plain,),
        base=str(adapted.base),
        mixing="parameters",
        adapter_slots=2,
        max_adapter_rank=8,
        slots_without_kv=2,
    )
    llm = engine(spec, enforce_eager=False)
    assert not model_of(llm).trunk.do_not_compile
    assert model_of(llm).is_single
    assert self_check.run(llm.llm_engine.engine_core.engine_core)["failure"] is None
    asked = random_jobs(8, num_members=3, vocab_size=VOCAB_SIZE, seed=5)
    asked = [job for job in asked if not set(job.weights) <= {0.0, 1.0}]
    asked = [replace(job, mixing="parameters") for job in asked]

    def worst(*slots: Path) -> float:
        oracle = Oracle([adapted.base, *slots])
        return oracle.worst_error(asked, generate(llm, asked))

    base = adapted.base
    assert worst(base, base) < TOLERANCE_NATS
    put(llm, 1, adapted.adapters[1])
    assert worst(base, adapted.merged[1]) < TOLERANCE_NATS
    put(llm, 0, adapted.adapters[2])
    put(llm, 1, adapted.adapters[0])
    assert worst(adapted.merged[2], adapted.merged[0]) < TOLERANCE_NATS


def test_a_gpus_slots_are_exact_where_graphs_keep_the_matrices(
    engine: EngineFactory, adapted: AdaptedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's rows and joined matrices on a CPU that repacks none."""

    def keep(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    monkeypatch.setattr("vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm", keep)
    monkeypatch.setattr("prefmix.mixing.models.base.takes_any_rows", lambda device: False)
    monkeypatch.setattr("prefmix.mixing.models.adapter_linears.holds_slots_apart", lambda: False)
    spec = adapted.spec(adapter_slots=2, max_adapter_rank=8, slots_without_kv=1)
    llm = engine(spec, enforce_eager=False)
    model = model_of(llm)
    assert not model.trunk.do_not_compile
    assert not any("slots_a" in name for name, _ in model.named_parameters())
    assert any(method.joined is not None for method in model.adapted.values())
    asked = random_jobs(6, num_members=5, vocab_size=VOCAB_SIZE, seed=7)
    by_logits = random_jobs(6, num_members=4, vocab_size=VOCAB_SIZE, seed=8)
    asked = [replace(job, mixing="parameters") for job in asked]
    asked += [replace(job, weights=(*job.weights, 0.0)) for job in by_logits]

    def worst(*slots: Path) -> float:
        oracle = Oracle([*adapted.merged, *slots])
        return oracle.worst_error(asked, generate(llm, asked))

    base, merged = adapted.base, adapted.merged
    assert worst(base, base) < TOLERANCE_NATS
    put(llm, 0, adapted.adapters[1])
    put(llm, 1, adapted.adapters[2])
    assert worst(merged[1], merged[2]) < TOLERANCE_NATS
    put(llm, 0, adapted.adapters[0])
    assert commands.run(llm.llm_engine.engine_core.engine_core, "empty", [1])["failure"] is None
    assert worst(merged[0], base) < TOLERANCE_NATS
