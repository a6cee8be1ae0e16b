"""A GPU's rows, products and operator of attention, compiled by Inductor for a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import AdaptedBase, EngineFactory, end_process_groups, model_of
from support.exactness import TOLERANCE_NATS, Oracle, generate, random_jobs

pytestmark = pytest.mark.engine


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineFactory]:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    end_process_groups()
    factory = EngineFactory(max_alive=1)
    yield factory
    factory.end()


def test_the_rows_of_a_gpu_are_exact_in_a_compiled_graph(
    engine: EngineFactory, adapted: AdaptedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefmix.mixing.models.base.takes_any_rows", lambda device: False)
    llm = engine(adapted.spec(reference=adapted.reference()), enforce_eager=False)
    assert not model_of(llm).trunk.do_not_compile
    batch = random_jobs(12, num_members=4, vocab_size=VOCAB_SIZE, seed=11)
    oracle = Oracle([*adapted.merged, adapted.base])
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
