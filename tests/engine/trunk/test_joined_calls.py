"""Attention of a shared trunk in the rows of a GPU: one call a layer for all policies.

On vLLM's V2 model runner, by tests/processes/test_runner_v2.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import RUNNER, AdaptedBase, EngineFactory, model_of
from support.exactness import (
    TOLERANCE_NATS,
    Oracle,
    generate,
    random_jobs,
    with_drawn_heads,
)

pytestmark = pytest.mark.skipif(RUNNER == "v1", reason="GPUs have V2")


@contextmanager
def counted(llm: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Calls of attention by pass of the trunk."""
    calls: list[int] = []
    attend = CPUAttentionBackendImpl.forward

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[-1] += 1
        return attend(self, *args, **kwargs)

    monkeypatch.setattr(CPUAttentionBackendImpl, "forward", counting)
    base = model_of(llm).trunk.base
    hook = base.register_forward_pre_hook(lambda *_: calls.append(0))
    yield calls
    hook.remove()


@pytest.mark.parametrize("has_prompts", [False, True])
def test_one_joined_call_a_layer_is_exact(
    own_engine: EngineFactory,
    adapted: AdaptedBase,
    monkeypatch: pytest.MonkeyPatch,
    has_prompts: bool,
) -> None:
    """Chunks, prefix hits, and policies without weight."""
    monkeypatch.setattr("prefmix.mixing.models.base.takes_any_rows", lambda device: False)
    spec = replace(adapted.spec(reference=adapted.reference()), has_prompts=has_prompts)
    llm = own_engine(spec, max_num_batched_tokens=48, num_gpu_blocks_override=24)
    oracle = Oracle([*adapted.merged, adapted.base])
    jobs = random_jobs(8, num_members=4, vocab_size=VOCAB_SIZE, seed=3)
    if has_prompts:
        jobs = [
            with_drawn_heads(each, vocab_size=VOCAB_SIZE, seed=seed)
            for seed, each in enumerate(jobs)
        ]
    num_layers = len(model_of(llm).attention.stacked)
    with counted(llm, monkeypatch) as calls:
        assert oracle.worst_error(jobs, generate(llm, jobs)) < TOLERANCE_NATS
    assert len(calls) > 8
    assert set(calls) == {num_layers}
    model = model_of(llm)
    # As where the caches cannot join: each policy has a call of its own.
    for each in model.attention.stacked:
        each.joined_blocks = None
    model.weights.joined = model.weights.needed = None
    model.step.runs_everyone = True
    model.step.begin_without_batch()
    with counted(llm, monkeypatch) as calls:
        assert oracle.worst_error(jobs, generate(llm, jobs)) < TOLERANCE_NATS
    assert set(calls) == {4 * num_layers}
