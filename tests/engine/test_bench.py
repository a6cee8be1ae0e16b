"""The contestants of `prefmix bench` compute the same mixture, in the memory of their layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from prefmix.bench.contestants import settings as names
from prefmix.bench.contestants.dummy_format import DUMMY
from prefmix.bench.contestants.implementations import TransformersLoop
from prefmix.bench.contestants.job import Job, make_job
from prefmix.bench.contestants.models import Models
from prefmix.bench.contestants.random_models import Shape, save_adapter, save_model
from prefmix.bench.contestants.settings import contestant_settings
from prefmix.bench.memory import MemoryProbe
from support.engines import end_engine
from support.exactness import Job as Request
from support.exactness import generate

SHAPE = Shape(layers=2, hidden=64, intermediate=128, heads=2, kv_heads=2, vocab=320)
NUM_POLICIES = 2
CERTAIN = 1e4
"""Gain of the LM heads: one token has all the probability, so drawing is deterministic."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    root = tmp_path_factory.mktemp("models")
    base, *policies = (
        save_model(root / name, SHAPE.config(), seed=seed, head_gain=CERTAIN)
        for seed, name in enumerate(("base", "p0", "p1"))
    )
    adapters = [save_adapter(root / f"a{seed}", base, rank=2, seed=seed) for seed in range(2)]
    models = Models(
        policies=tuple(map(str, policies)),
        base=str(base),
        adapters=tuple(map(str, adapters)),
        average=None,
    )
    options = {"dtype": "float32", "max_model_len": 64, "enforce_eager": True}
    flags = ["--max-num-seqs=4"]
    common = {"options": options, "engine_flags": flags, "kv_cache_bytes": 2**24}
    return contestant_settings(models, num_policies=NUM_POLICIES, common=common)


@pytest.fixture
def probe() -> Iterator[Any]:
    """probe(settings) -> MemoryProbe; a new one ends the one before."""
    alive: list[MemoryProbe] = []

    def start(one: dict[str, Any]) -> MemoryProbe:
        end()
        alive.append(MemoryProbe(one))
        return alive[-1]

    def end() -> None:
        while alive:
            end_engine(alive.pop().llm)

    yield start
    end()


def test_memory_is_that_of_the_layout_and_mixtures_agree(
    settings: dict[str, dict[str, Any]], probe: Any
) -> None:
    one = probe(settings[names.ONE_POLICY]).answer({})
    assert one["parameter_bytes"] == 4 * SHAPE.num_parameters
    assert one["kv_bytes_per_token"] == 2 * SHAPE.layers * SHAPE.hidden * 4

    made = settings[names.TRUNK]["options"] | {"load_format": DUMMY}  # as without files
    engine = probe({**settings[names.TRUNK], "options": made})
    trunk = engine.answer({})
    assert trunk["kv_bytes_per_token"] == NUM_POLICIES * one["kv_bytes_per_token"]
    requests = [Request(prompt=(5, 6, 7), weights=each) for each in ((1, 0), (0, 1), (0.5, 0.5))]
    first, second, both = (
        {token: entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}
        for output in generate(engine.llm, requests, logprobs=20, temperature=0.0)
    )
    assert first != pytest.approx(second, abs=1e-3), "no adapter is in its place"
    assert both != pytest.approx(first, abs=1e-3)

    engine = probe(settings[names.FULL])
    full = engine.answer({})
    assert full["kv_bytes_per_token"] == NUM_POLICIES * one["kv_bytes_per_token"]
    gains = 4 * SHAPE.hidden * (2 * SHAPE.layers + 1)  # 1 in every random model: stored once
    assert full["parameter_bytes"] == NUM_POLICIES * one["parameter_bytes"] - gains
    assert one["parameter_bytes"] < trunk["parameter_bytes"] < full["parameter_bytes"]

    prompts = make_job(batch=3, num_policies=2, prompt_tokens=6, tokens=1, seed=0).prompts
    job = Job(prompts=prompts, lengths=[5, 3, 5], weights=[[0.3, 0.7], [1.0, 0.0], [0.6, 0.4]])
    drawn = engine.draw(job)
    assert [len(row) for row in drawn] == [5, 3, 5]
    loop = TransformersLoop(settings[names.TRANSFORMERS])
    assert loop.draw(job) == drawn
    assert TransformersLoop(settings[names.ONE_BY_ONE]).draw(job) == drawn
    swapped = Job(prompts=prompts, lengths=job.lengths, weights=[[0.7, 0.3]] * 3)
    assert loop.draw(swapped) != drawn
